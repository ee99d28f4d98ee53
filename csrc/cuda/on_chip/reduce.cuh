// What both on-chip kernels are built of: the blocks of an image, an image's rows and columns in shared memory, and the
// reductions along either.
//
// Threads go along rows, so that neighbours read neighbouring elements; a row lies right behind the one before it,
// so that neither global nor shared memory sees a gap where one ends. Everything that is reduced is so in an order that
// depends on the shape only: by lanes, by slices, by groups of threads, by blocks in the order of their ranks.
#pragma once

#include <cooperative_groups.h>

#include "../common/words.cuh"
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

// Of the two blocks, what that of this rank has. Not by an index: ptxas would copy the array to the stack.
static_assert(kLargestCluster == 2);
__device__ __forceinline__ Part part(const int (&first)[kLargestCluster + 1], int rank) {
    return rank == 0 ? Part{first[0], first[1]} : Part{first[1], first[2]};
}

template <class B, class U> __device__ __forceinline__ void store_to_all(const B& blocks, U* p, U value) {
    for (int rank = 0; rank < blocks.count(); ++rank) *blocks.of(rank, p) = value;
}

// A sum, and the maximum with its place; no place where all is -Inf.
struct Pooled {
    static constexpr int kNowhere = 0x7fffffff;
    float sum = 0;
    Maximum<float> most = {-INFINITY, kNowhere};

    // What a thread has of more elements; it comes to them in ascending order of the places, so that of equals the
    // first remains. ``greatest`` passes over NaN, for which then the sum asks for all elements once more.
    __device__ __forceinline__ void add(float total, float greatest, int place) {
        sum += total;
        if (greatest > most.value) most = {greatest, place};
    }
    __device__ __forceinline__ bool has_nan() const { return sum != sum; }
    // Of the elements in order, the first that is NaN.
    __device__ __forceinline__ void look_for_nan(float v, int place) {
        if (v != v && most.value == most.value) most = {v, place};
    }
    __device__ __forceinline__ int place() const { return most.index == kNowhere ? 0 : most.index; }
};

__device__ __forceinline__ Pooled merge(Pooled a, Pooled b) { return {a.sum + b.sum, larger(a.most, b.most)}; }
__device__ __forceinline__ Pooled from_lane(Pooled v, int step) {
    return {from_lane(v.sum, step), {from_lane(v.most.value, step), from_lane(v.most.index, step)}};
}

// Calls f with the number of elements that a thread takes of a row at a time, as a constant: as many as 16 bytes have,
// or for half types 4, where every row begins at such a boundary, else 1.
template <int W> struct Word {
    static constexpr int size = W;
};
template <class T, class F> __device__ __forceinline__ void with_word(int cols, F f) {
    if (cols % kVector<T> == 0) {
        f(Word<kVector<T>>{});
        return;
    }
    if constexpr (kVector<T> > 4) {
        if (cols % 4 == 0) {
            f(Word<4>{});
            return;
        }
    }
    f(Word<1>{});
}

template <int W> __device__ __forceinline__ void store_numbers(float* p, const float (&v)[W]) {
    if constexpr (W % 4 == 0) {
#pragma unroll
        for (int i = 0; i < W; i += 4) {
            Vector<float> four;
            memcpy(&four, v + i, sizeof four);
            four.store(p + i);
        }
    } else {
#pragma unroll
        for (int i = 0; i < W; ++i) p[i] = v[i];
    }
}

// Sums and maxima in shared memory, and the gate that comes of them, which takes the room of the places: of n things
// from ``first`` on.
struct Pools {
    float *sum, *most, *gate;

    __device__ Pools(unsigned char* shared, int n, int first = 0)
        : sum(reinterpret_cast<float*>(shared) - first), most(sum + n), gate(most + n) {}
    __device__ int* place() const { return reinterpret_cast<int*>(gate); }
    __device__ __forceinline__ void put(int i, const Pooled& v) const {
        sum[i] = v.sum;
        most[i] = v.most.value;
        place()[i] = v.most.index;
    }
    __device__ __forceinline__ Pooled get(int i) const { return {sum[i], {most[i], place()[i]}}; }
    template <int W> __device__ __forceinline__ void put(int i, const Pooled (&v)[W]) const {
        float sums[W], maxima[W], places[W];
#pragma unroll
        for (int j = 0; j < W; ++j)
            sums[j] = v[j].sum, maxima[j] = v[j].most.value, memcpy(places + j, &v[j].most.index, sizeof(float));
        store_numbers(sum + i, sums);
        store_numbers(most + i, maxima);
        store_numbers(gate + i, places);
    }
    template <class B> __device__ __forceinline__ Pooled get(const B& blocks, int rank, int i) const {
        return {*blocks.of(rank, sum + i), {*blocks.of(rank, most + i), *blocks.of(rank, place() + i)}};
    }
};

// Reduces the block's rows: kBatch of them at a time, which share what belongs to the columns, by ``lanes`` neighbours,
// in slices of the columns. visit(A of each row, start(i): where row i begins, the first row, first column, last, step)
// has a lane's part; rows beyond the last stand for the last. put(slice * rows + row, A). Whole warps come here.
template <class A, int W, class Visit, class Put>
__device__ __forceinline__ void reduce_rows(const OnChip& o, int rows, Visit visit, Put put) {
    const int lane = int(threadIdx.x) % o.lanes, words = o.cols / W;
    const int tasks = (rows + kBatch - 1) / kBatch * o.slices;
    for (int first = 0; first < tasks; first += kOnChipThreads / o.lanes) {
        const int task = first + int(threadIdx.x) / o.lanes, slice = task % o.slices, row = task / o.slices * kBatch;
        A a[kBatch] = {};
        if (task < tasks) {
            const auto start = [&](int i) { return min(row + i, rows - 1) * o.cols; };
            visit(a, start, row, (words * slice / o.slices + lane) * W, words * (slice + 1) / o.slices * W,
                  o.lanes * W);
        }
        const A mine = merge_lanes(a, o.lanes);
        if (task < tasks && lane < kBatch && row + lane < rows) put(slice * rows + row + lane, mine);
    }
}

// What the slices of a row left, together.
template <class A, class Get> __device__ __forceinline__ A join_slices(const OnChip& o, int rows, int row, Get get) {
    A a = get(row);
    for (int slice = 1; slice < o.slices; ++slice) a = merge(a, get(slice * rows + row));
    return a;
}

// Reduces the columns of a matrix: visit(A of W columns, a group of threads, first column) has that group's rows.
// put(first column, A of some), get(column) for what was put there; all groups' are joined.
template <class A, int W, class Visit, class Put, class Get>
__device__ __forceinline__ void reduce_columns(int cols, int groups, Visit visit, Put put, Get get) {
    constexpr int kTogether = 8;  // groups that a thread joins
    const int words = cols / W;
    for (int i = int(threadIdx.x); i < groups * words; i += kOnChipThreads) {
        const int group = i / words, col = i % words * W;
        A a[W] = {};
        visit(a, group, col);
        put(group * cols + col, a);
    }
    for (int left; groups > 1; groups = left) {
        left = max(1, min(kOnChipThreads / cols, groups / kTogether));
        __syncthreads();
        for (int i = int(threadIdx.x); i < left * cols; i += kOnChipThreads) {
            A a[1] = {get(i)};
            for (int j = i + left * cols; j < groups * cols; j += left * cols) a[0] = merge(a[0], get(j));
            put(i, a);
        }
    }
}

// What the blocks have of the same thing, together: get(rank).
template <class A, class B, class Get> __device__ __forceinline__ A join_blocks(const B& blocks, Get get) {
    A a = get(0);
#pragma unroll 4
    for (int rank = 1; rank < blocks.count(); ++rank) a = merge(a, get(rank));
    return a;
}

// From global to shared memory, 16 bytes a thread, several of them under way.
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
