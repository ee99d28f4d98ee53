// The blocks of an image (Blocks), and the rows, ranges and buffers of one block (ImageBlock).
#pragma once

#include <cooperative_groups.h>

#include "../common/words.cuh"
#include "on_chip.h"

namespace cbam::cuda {

// The blocks of an image: one, or a cluster if the GPU has clusters.
struct Blocks {
    const int count;

#if defined(CBAM_EMULATION) || __CUDA_ARCH__ >= 900
    __device__ int rank() const { return count > 1 ? int(cooperative_groups::this_cluster().block_rank()) : 0; }
    __device__ void sync() const {
        if (count > 1) cooperative_groups::this_cluster().sync();
        else __syncthreads();
    }
    // Returns the address of p in the block of this rank. In a launch without clusters, each block is a cluster of one.
    template <class U> __device__ U* of(int rank, U* p) const {
        return cooperative_groups::this_cluster().map_shared_rank(p, unsigned(rank));
    }
#else
    __device__ int rank() const { return 0; }
    __device__ void sync() const { __syncthreads(); }
    template <class U> __device__ U* of(int, U* p) const { return p; }
#endif
};

// Stores v in all blocks, or only in this one.
template <bool to_all> __device__ __forceinline__ void store_number(const Blocks& blocks, float* p, float v) {
    if (!to_all) *p = v;
    for (int rank = 0; to_all && rank < blocks.count; ++rank) *blocks.of(rank, p) = v;
}

// Merges element i of the buffers of all blocks, in the order of the ranks.
template <class Buffer> __device__ __forceinline__ auto join_blocks(const Blocks& blocks, Buffer buffer, int i) {
    auto a = buffer.get(blocks, 0, i);
#pragma unroll 4
    for (int rank = 1; rank < blocks.count; ++rank) a = merge(a, buffer.get(blocks, rank, i));
    return a;
}

// Returns the range of a block. Not indexed by rank: ptxas would copy the array to the stack.
static_assert(kLargestCluster == 2);
__device__ __forceinline__ Range range_of(const int (&first)[kLargestCluster + 1], int rank) {
    return rank == 0 ? Range{first[0], first[1]} : Range{first[1], first[2]};
}

// A block's part of an image, the rows in row_range. Block i of the grid belongs to image i / cluster.
template <class Element, bool nhwc> struct ImageBlock {
    using T = Element;
    static constexpr bool channels_last = nhwc;

    const Problem& p;
    const OnChip& o;
    unsigned char* const shared;
    const Blocks blocks = {o.cluster};
    const int64_t n = blockIdx.x / unsigned(o.cluster);
    const int C = int(p.C), HW = int(p.HW()), kk = int(p.k * p.k);
    const Range row_range = range_of(o.first_row, blocks.rank());
    const Range column_range = range_of(o.first_column, blocks.rank());
    const Range channels = nhwc ? column_range : row_range, pixels = nhwc ? row_range : column_range;
    const int rows = row_range.last - row_range.first;
    T* const x = reinterpret_cast<T*>(shared + o.x);
    float *const hidden = floats(o.hidden), *const ws = floats(o.ws);

    __device__ int64_t start() const { return n * p.C * p.HW() + int64_t(row_range.first) * o.cols; }
    __device__ float* floats(int at) const { return reinterpret_cast<float*>(shared + at); }
    // The block's rows of a tensor of x's shape.
    __device__ const T* rows_of(const void* tensor) const { return static_cast<const T*>(tensor) + start(); }
    __device__ T* rows_of(void* tensor) const { return static_cast<T*>(tensor) + start(); }
    __device__ float* saved() const { return static_cast<float*>(p.saved) + n * p.saved_size(); }
    __device__ float* saved_maps() const { return saved() + p.saved_size() - 3 * HW; }
    __device__ int32_t* argmax() const { return p.index + n * p.index_size(); }
    __device__ int32_t* argmax_maps() const { return argmax() + (p.channel ? p.C : 0); }
    __device__ float* partial() const { return static_cast<float*>(p.partial) + n * p.partial_size(); }
    __device__ void sync() const { blocks.sync(); }
};

// Copies from global to shared memory, 16 bytes per access. A thread has kAtATime loads in flight.
template <class T> __device__ __forceinline__ void load_rows(const T* from, int elements, T* to) {
    constexpr int V = kVector<T>, kAtATime = 4;
#pragma unroll 1
    for (int first = int(threadIdx.x) * V; first < elements; first += kAtATime * kOnChipThreads * V) {
        Vector<T> v[kAtATime];
#pragma unroll
        for (int j = 0; j < kAtATime; ++j) {
            const int i = first + j * kOnChipThreads * V;
            if (i < elements) v[j] = load_vector(from + i);
        }
#pragma unroll
        for (int j = 0; j < kAtATime; ++j) {
            const int i = first + j * kOnChipThreads * V;
            if (i < elements) v[j].store(to + i);
        }
    }
}

}  // namespace cbam::cuda
