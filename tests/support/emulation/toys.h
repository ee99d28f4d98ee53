// Small kernels of one float a thread, each right or, if ``wrong``, with one error for the emulation to report. n is a
// multiple of the 128 threads of a block, and x and y have n elements.
#pragma once

#include <cuda_runtime_api.h>

namespace toys {

using Toy = cudaError_t(const float* x, float* y, int n, bool wrong);

Toy block_sums;        // wrong: no barrier between the write and the read of shared memory
Toy block_sums_twice;  // wrong: no barrier before shared memory is written again
Toy warp_neighbours;   // wrong: no __syncwarp between the write and the read of shared memory
Toy next_element;      // wrong: the last thread reads one element too many
Toy next_in_shared;    // the same in shared memory
Toy copy;              // wrong: the last element is not written
Toy cluster_sums;      // of clusters of two blocks; wrong: no meeting before the other block is read
Toy cluster_begins;    // wrong: no meeting before the other block's memory is written
Toy cluster_ends;      // wrong: no meeting after the other block was read
Toy branches;          // wrong: half of the block waits at another barrier than the other half
Toy early_exit;        // wrong: some threads end while the others wait
Toy vectors;           // wrong: 16-byte loads that are not aligned
Toy last_block;        // wrong: all blocks write the same element
Toy overwritten;       // wrong: x is written
Toy begins_early;      // wrong: x is read while the launch before it may be running
Toy follows_nothing;   // wrong: a block ends and has not waited for the launch before it
Toy strided;           // not wrong but slow: a warp accesses every 16th element, and one bank of shared memory

// Launches that the runtime refuses if ``wrong``; else they copy.
Toy large_shared;   // more than was asked for
Toy large_cluster;  // of 16 blocks, without asking
Toy odd_grid;       // not a multiple of the cluster

}  // namespace toys
