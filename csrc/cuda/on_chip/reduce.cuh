// Reductions along the rows and down the columns of a matrix in shared memory.
//
// Neighbouring threads read neighbouring elements of a row. Rows are adjacent, without padding. The order of a
// reduction depends on the shape only: lanes, slices, groups of threads, blocks.
#pragma once

#include "block.cuh"

namespace cbam::cuda {

// Calls f with the elements that a thread reads of a row at a time, as a constant: 16 bytes or, for half types, 4
// elements, if every row is aligned to them; else 1.
template <int W> using Word = std::integral_constant<int, W>;

template <class T, class F> __device__ __forceinline__ void with_word(int cols, F f) {
    if (cols % kVector<T> == 0) return f(Word<kVector<T>>{});
    if constexpr (kVector<T> > 4)
        if (cols % 4 == 0) return f(Word<4>{});
    f(Word<1>{});
}

template <int W> __device__ __forceinline__ void store_numbers(float* p, const float (&v)[W]) {
    constexpr int kOfAccess = W % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < W; i += kOfAccess) {
        Packed<float, kOfAccess> some;
        memcpy(some.v, v + i, sizeof some);
        some.store(p + i);
    }
}

// A buffer of sums in shared memory. pool.cuh has one of sums and maxima.
struct Sums {
    float* data;

    template <int W> __device__ __forceinline__ void put(int i, const float (&v)[W]) const {
        store_numbers(data + i, v);
    }
    __device__ __forceinline__ float get(int i) const { return data[i]; }
    __device__ __forceinline__ float get(const Blocks& blocks, int rank, int i) const {
        return *blocks.of(rank, data + i);
    }
};

// Reduces the block's rows. ``lanes`` lanes take kBatch rows of a slice of the columns. visit(A per row, start, first,
// last, step) adds a lane's columns, where start(i) is the offset of row i; past the end it is the last row. Writes
// buffer, (slices, rows). All threads of a warp must call it.
template <class A, int W, class Buffer, class Visit>
__device__ __forceinline__ void reduce_rows(const OnChip& o, int rows, Buffer buffer, Visit visit) {
    const int lane = int(threadIdx.x) % o.lanes, words = o.cols / W;
    const int tasks = (rows + kBatch - 1) / kBatch * o.slices;
    for (int first = 0; first < tasks; first += kOnChipThreads / o.lanes) {
        const int task = first + int(threadIdx.x) / o.lanes, slice = task % o.slices, row = task / o.slices * kBatch;
        A a[kBatch] = {};
        if (task < tasks) {
            const auto start = [&](int i) { return min(row + i, rows - 1) * o.cols; };
            visit(a, start, (words * slice / o.slices + lane) * W, words * (slice + 1) / o.slices * W, o.lanes * W);
        }
        const A mine[1] = {merge_lanes(a, o.lanes)};
        if (task < tasks && lane < kBatch && row + lane < rows) buffer.put(slice * rows + row + lane, mine);
    }
}

// Merges the slices of a row.
template <class Buffer> __device__ __forceinline__ auto join_slices(const OnChip& o, int rows, int row, Buffer buffer) {
    auto a = buffer.get(row);
    for (int slice = 1; slice < o.slices; ++slice) a = merge(a, buffer.get(slice * rows + row));
    return a;
}

// Reduces the columns of a matrix. visit(A of W columns, group, first column) adds the rows of a group of threads.
// Writes buffer, (groups, cols), and merges the groups into the first.
template <class A, int W, class Buffer, class Visit>
__device__ __forceinline__ void reduce_columns(int cols, int groups, Buffer buffer, Visit visit) {
    constexpr int kTogether = 8;  // groups that a thread merges at a time
    const int words = cols / W;
    for (int i = int(threadIdx.x); i < groups * words; i += kOnChipThreads) {
        const int group = i / words, col = i % words * W;
        A a[W] = {};
        visit(a, group, col);
        buffer.put(group * cols + col, a);
    }
    for (int left; groups > 1; groups = left) {
        left = max(1, min(kOnChipThreads / cols, groups / kTogether));
        __syncthreads();
        for (int i = int(threadIdx.x); i < left * cols; i += kOnChipThreads) {
            A a[1] = {buffer.get(i)};
            for (int j = i + left * cols; j < groups * cols; j += left * cols) a[0] = merge(a[0], buffer.get(j));
            buffer.put(i, a);
        }
    }
}

}  // namespace cbam::cuda
