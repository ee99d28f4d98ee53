// The on-chip schedule: an image is read once and stays in the shared memory of one block, or of a cluster of two,
// until the result is written. Host code, torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "../../problem.h"

namespace cbam::cuda {

constexpr int kOnChipThreads = 448;  // per block: with two blocks on a multiprocessor, a thread has 72 registers

constexpr int kLargestCluster = 2;

// [first, last)
struct Range {
    int first, last;
};

// How the blocks of an image split it, and the layout of their shared memory. An image is a matrix in memory order: in
// NCHW rows are channels and columns are pixels, in channels_last the reverse. A block has a range of rows, which is
// contiguous in memory, and a range of columns, whose partial sums it adds.
struct OnChip {
    int cluster;     // blocks per image
    int rows, cols;  // of the image
    int unit;        // rows from one 16-byte boundary to the next
    int max_rows;    // per block
    // First row and column of each block, and the end of the last. The host computes them, because values in constant
    // memory take no registers.
    int first_row[kLargestCluster + 1], first_column[kLargestCluster + 1];
    int lanes;        // lanes that reduce rows together
    int slices;       // per row, so that all threads have work if rows are few
    int groups;       // of threads; each reduces every groups-th row of the columns
    int mlp_lanes;    // lanes that reduce rows of w2 together
    int mlp_groups;   // like groups, for the columns of w2
    int term_warps;   // warps that sum the terms of dg at the maxima over the channels
    int pooled_rows;  // forward: rows whose pools and gate each block holds
    int ws_slices;    // of the pixels, for the partial sums of dws
    // Offsets of the buffers of forward.cuh and backward.cuh, and their size, in bytes.
    int x, row_partials, row_pools, column_pools, hidden, ws;
    int dy, channels, pixels, scratch, ws_partials, terms;
    int64_t bytes;
};

OnChip on_chip_forward_layout(const Problem&, int cluster);
OnChip on_chip_backward_layout(const Problem&, int cluster);

cudaError_t on_chip_forward(const Problem&, int cluster, cudaStream_t);
// Computes everything but the sums over the images.
cudaError_t on_chip_backward(const Problem&, int cluster, cudaStream_t);

}  // namespace cbam::cuda
