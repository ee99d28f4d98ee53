// The on-chip schedule: an image stays in the shared memory of one block, or of a cluster of two, from the only
// reading of its elements to the writing of the result. Host side, torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "../../problem.h"

namespace cbam::cuda {

constexpr int kOnChipThreads = 448;  // of a block: of two on a multiprocessor each thread then has 72 registers

constexpr int kLargestCluster = 2;

// A part of 0 ... n - 1.
struct Part {
    int first, last;
};

// How the blocks of an image share it, and what lies where in the shared memory of each. An image is a matrix as it
// lies in memory: rows are channels and columns pixels, in channels_last rows are pixels and columns channels. Blocks
// take runs of rows, so that each reads and writes one contiguous piece, and of what belongs to the columns equal
// parts.
struct OnChip {
    int cluster;     // blocks of an image
    int rows, cols;  // of the image
    int unit;        // rows from one 16-byte boundary to the next
    int most_rows;   // of a block
    // Where the part of each block begins, and behind the last the end. Here, and not worked out by the kernels, since
    // what comes from constant memory need not stay in registers.
    int first_row[kLargestCluster + 1], first_column[kLargestCluster + 1];
    int lanes;       // neighbours that reduce rows together
    int slices;      // of a row, so that all threads have some where rows are few
    int groups;      // of threads, that reduce the columns of every groups-th row
    int mlp_lanes;   // neighbours that reduce rows of w2 together
    int mlp_groups;  // as groups, for the columns of w2
    int term_parts;  // warps that sum what comes through the maxima over the channels
    int side_rows;   // forward: of how many rows each block has the pools and the gate
    int map_slices;  // of the pixels, in sums over them for the gradient of ws
    // Where the arrays lie that forward.cuh and backward.cuh speak of, and the size of all, in bytes.
    int x, row_parts, row_side, column_side, hidden, window;
    int dy, channels, pixels, scratch, taps, terms;
    int64_t bytes;
};

OnChip on_chip_forward_layout(const Problem&, int cluster);
OnChip on_chip_backward_layout(const Problem&, int cluster);

cudaError_t on_chip_forward(const Problem&, int cluster, cudaStream_t);
// All but the sums over the images.
cudaError_t on_chip_backward(const Problem&, int cluster, cudaStream_t);

}  // namespace cbam::cuda
