// The on-chip schedule: an image stays in the shared memory of one block, or of a cluster of two, from the only
// reading of its elements to the writing of the result. Host side, torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "../../problem.h"

namespace cbam::cuda {

constexpr int kOnChipThreads = 448;  // of a block: with two on a multiprocessor each thread then has 72 registers

constexpr int kLargestCluster = 2;

// first ... last - 1
struct Range {
    int first, last;
};

// How the blocks of an image divide it, and what lies where in the shared memory of each. An image is a matrix as it
// lies in memory: in NCHW rows are channels and columns pixels, in channels_last rows are pixels and columns channels.
// A block has a range of rows, so that it reads and writes one contiguous piece, and a range of columns, whose partial
// sums it adds.
struct OnChip {
    int cluster;     // blocks of an image
    int rows, cols;  // of the image
    int unit;        // rows from one 16-byte boundary to the next
    int max_rows;    // of a block
    // Where the range of each block begins, and the end of the last. Not worked out by the kernels, since values in
    // constant memory need not stay in registers.
    int first_row[kLargestCluster + 1], first_column[kLargestCluster + 1];
    int lanes;        // neighbours that reduce rows together
    int slices;       // of a row, so that all threads have some where rows are few
    int groups;       // of threads, that reduce the columns of every groups-th row
    int mlp_lanes;    // neighbours that reduce rows of w2 together
    int mlp_groups;   // as groups, for the columns of w2
    int term_warps;   // warps that sum the terms of dg that come from the maxima over the channels
    int pooled_rows;  // forward: rows whose pools and gate each block has
    int ws_slices;    // of the pixels, in the sums for the gradient of ws
    // Where the buffers of forward.cuh and backward.cuh begin, and the size of all, in bytes.
    int x, row_partials, row_pools, column_pools, hidden, ws;
    int dy, channels, pixels, scratch, ws_partials, terms;
    int64_t bytes;
};

OnChip on_chip_forward_layout(const Problem&, int cluster);
OnChip on_chip_backward_layout(const Problem&, int cluster);

cudaError_t on_chip_forward(const Problem&, int cluster, cudaStream_t);
// All but the sums over the images.
cudaError_t on_chip_backward(const Problem&, int cluster, cudaStream_t);

}  // namespace cbam::cuda
