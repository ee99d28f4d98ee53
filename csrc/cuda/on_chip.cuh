// What both on-chip kernels are built of: the blocks of an image, an image's rows and columns in shared memory, and the
// reductions along either.
//
// Threads go along rows, so that neighbours read neighbouring elements; a row lies right behind the one before it,
// so that neither global nor shared memory sees a gap where one ends. Everything that is reduced is so in an order that
// depends on the shape only: by lanes, by groups of threads, by blocks in the order of their ranks.
#pragma once

#include <cooperative_groups.h>

#include "device.cuh"
#include "on_chip.h"

namespace cbam::cuda {

#if defined(CBAM_EMULATION) || __CUDA_ARCH__ >= 900
constexpr bool kClusters = true;
#else
constexpr bool kClusters = false;
#endif

// The blocks of an image: one, or a cluster.
template <bool clustered> struct Blocks {
    __device__ int rank() const { return 0; }
    __device__ int count() const { return 1; }
    __device__ void sync() const { __syncthreads(); }
    template <class U> __device__ U* of(int, U* p) const { return p; }
};

#if defined(CBAM_EMULATION) || __CUDA_ARCH__ >= 900
template <> struct Blocks<true> {
    __device__ int rank() const { return int(cooperative_groups::this_cluster().block_rank()); }
    __device__ int count() const { return int(cooperative_groups::this_cluster().num_blocks()); }
    __device__ void sync() const { cooperative_groups::this_cluster().sync(); }
    // What lies at p here, in the block of this rank.
    template <class U> __device__ U* of(int rank, U* p) const {
        return cooperative_groups::this_cluster().map_shared_rank(p, unsigned(rank));
    }
};
#endif

template <class B, class U> __device__ __forceinline__ void store_to_all(const B& blocks, U* p, U value) {
    for (int rank = 0; rank < blocks.count(); ++rank) *blocks.of(rank, p) = value;
}

// The part of 0 ... n - 1 of one of so many blocks, in whole units.
__device__ __forceinline__ Part part_of(int rank, int blocks, int n, int unit) {
    const int units = (n + unit - 1) / unit;
    const int first = int(int64_t(units) * rank / blocks) * unit,
              last = int(int64_t(units) * (rank + 1) / blocks) * unit;
    return {min(first, n), min(last, n)};
}

// What a reduction adds up: a sum.
struct Sum {
    float value = 0;

    __device__ __forceinline__ void add(const Sum& other) { value += other.value; }
    __device__ __forceinline__ Sum from_lane(int step) const { return {__shfl_xor_sync(0xffffffffu, value, step)}; }
};

// ... or a sum and the maximum with its place; no place where all is -Inf.
struct Pooled {
    static constexpr int kNowhere = 0x7fffffff;
    float sum = 0;
    Maximum<float> most = {-INFINITY, kNowhere};

    // Of one thread, in ascending order of the places: of equals it keeps the first.
    __device__ __forceinline__ void add(float v, int place) {
        sum += v;
        if (!(v <= most.value) && most.value == most.value) most = {v, place};
    }
    __device__ __forceinline__ void add(const Pooled& other) {
        sum += other.sum;
        most = larger(most, other.most);
    }
    __device__ __forceinline__ Pooled from_lane(int step) const {
        return {__shfl_xor_sync(0xffffffffu, sum, step),
                {__shfl_xor_sync(0xffffffffu, most.value, step), __shfl_xor_sync(0xffffffffu, most.index, step)}};
    }
    __device__ __forceinline__ int place() const { return most.index == kNowhere ? 0 : most.index; }
};

// Sums and maxima in shared memory, and the gate that comes of them, which takes the room of the places.
struct Pools {
    float *sum, *most, *gate;

    __device__ Pools(unsigned char* shared, int n)
        : sum(reinterpret_cast<float*>(shared)), most(sum + n), gate(most + n) {}
    __device__ int* place() const { return reinterpret_cast<int*>(gate); }
    __device__ __forceinline__ void put(int i, const Pooled& v) const {
        sum[i] = v.sum;
        most[i] = v.most.value;
        place()[i] = v.most.index;
    }
    template <class B> __device__ __forceinline__ Pooled get(const B& blocks, int rank, int i) const {
        return {*blocks.of(rank, sum + i), {*blocks.of(rank, most + i), *blocks.of(rank, place() + i)}};
    }
};

// W elements at once: 4 bytes.
template <class T, int W> __device__ __forceinline__ void load_word(const T* p, float (&v)[W]) {
    if constexpr (W == 1) {
        v[0] = to_acc(*p);
    } else {
        const uint32_t bits = *reinterpret_cast<const uint32_t*>(p);
        T pair[W];
        memcpy(pair, &bits, sizeof bits);
        for (int i = 0; i < W; ++i) v[i] = to_acc(pair[i]);
    }
}

template <class T, int W> __device__ __forceinline__ void store_word(T* p, const float (&v)[W]) {
    if constexpr (W == 1) {
        *p = from_acc<T>(v[0]);
    } else {
        T pair[W];
        for (int i = 0; i < W; ++i) pair[i] = from_acc<T>(v[i]);
        uint32_t bits;
        memcpy(&bits, pair, sizeof bits);
        *reinterpret_cast<uint32_t*>(p) = bits;
    }
}

// Calls f with the elements of a word as a constant: 2 where two fit and rows are whole words.
template <int W> struct Word {
    static constexpr int size = W;
};
template <class T, class F> __device__ __forceinline__ void with_word(int cols, F f) {
    if constexpr (sizeof(T) == 2) {
        if (cols % 2 == 0) {
            f(Word<2>{});
            return;
        }
    }
    f(Word<1>{});
}

// finish(row, A) for each row, from visit(A&, row, first column of a word) for all its words. Whole warps come here.
template <class A, int W, class Visit, class Finish>
__device__ __forceinline__ void reduce_rows(int rows, int cols, int lanes, Visit visit, Finish finish) {
    const int lane = int(threadIdx.x) % lanes, own = int(threadIdx.x) / lanes;
    for (int first = 0; first < rows; first += kOnChipThreads / lanes) {
        const int row = first + own;
        A a;
        if (row < rows)
            for (int col = lane * W; col < cols; col += lanes * W) visit(a, row, col);
        for (int step = lanes / 2; step; step /= 2) a.add(a.from_lane(step));
        if (row < rows && lane == 0) finish(row, a);
    }
}

// finish(group * cols + column, A) for each column and each group's rows, from visit(A[W], row, first column of a
// word).
template <class A, int W, class Visit, class Finish>
__device__ __forceinline__ void reduce_columns(int rows, int cols, int groups, Visit visit, Finish finish) {
    const int words = cols / W;
    for (int i = int(threadIdx.x); i < groups * words; i += kOnChipThreads) {
        const int group = i / words, col = i % words * W;
        A a[W];
        for (int row = group; row < rows; row += groups) visit(a, row, col);
        for (int j = 0; j < W; ++j) finish(group * cols + col + j, a[j]);
    }
}

// finish(column, A) for each column of a part, from what all groups of all blocks left: get(rank, place).
template <class A, class B, class Get, class Finish>
__device__ __forceinline__ void join_columns(const B& blocks, Part part, int cols, int groups, Get get, Finish finish) {
    for (int col = part.first + int(threadIdx.x); col < part.last; col += kOnChipThreads) {
        A a;
        for (int rank = 0; rank < blocks.count(); ++rank)
            for (int group = 0; group < groups; ++group) a.add(get(rank, group * cols + col));
        finish(col, a);
    }
}

// From global to shared memory, 16 bytes a thread, several of them under way.
template <class T> __device__ __forceinline__ void load_rows(const T* from, int elements, T* to) {
    constexpr int V = kVector<T>, kAtATime = 4;
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
            if (i < elements) store_vector(to + i, v[j]);
        }
    }
}

// f(element of the vector, row, column) for the elements from i on.
template <class T, class F> __device__ __forceinline__ void each_element(int i, int cols, F f) {
    int row = i / cols, col = i - row * cols;
#pragma unroll
    for (int e = 0; e < kVector<T>; ++e) {
        f(e, row, col);
        if (++col == cols) col = 0, ++row;
    }
}

}  // namespace cbam::cuda
