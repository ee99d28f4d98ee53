// Sum, maximum and argmax of the rows or the columns of an image in shared memory: the channel pool and the maps.
#pragma once

#include "reduce.cuh"

namespace cbam::cuda {

// A sum, and a maximum with its argmax. If all elements are -Inf, the index is kNone.
struct Pooled {
    static constexpr int kNone = 0x7fffffff;
    float sum = 0;
    Maximum<float> max = {-INFINITY, kNone};

    // Adds the sum and the maximum of further elements. Indices ascend, so the first of tied elements is kept. Maxima
    // ignore NaN; if the sum is NaN, look_for_nan finds it.
    __device__ __forceinline__ void add(float total, float greatest, int index) {
        sum += total;
        if (greatest > max.value) max = {greatest, index};
    }
    __device__ __forceinline__ bool has_nan() const { return sum != sum; }
    // Keeps the first NaN. Call it for the elements in ascending order.
    __device__ __forceinline__ void look_for_nan(float v, int index) {
        if (v != v && max.value == max.value) max = {v, index};
    }
    __device__ __forceinline__ int argmax() const { return max.index == kNone ? 0 : max.index; }
};

__device__ __forceinline__ Pooled merge(Pooled a, Pooled b) { return {a.sum + b.sum, larger(a.max, b.max)}; }
__device__ __forceinline__ Pooled from_lane(Pooled v, int step) {
    return {from_lane(v.sum, step), {from_lane(v.max.value, step), from_lane(v.max.index, step)}};
}

// The pools of n rows or columns from ``first`` on, in shared memory. The gate replaces the argmax.
struct Pools {
    float *sum, *max, *gate;

    __device__ Pools(unsigned char* shared, int n, int first = 0)
        : sum(reinterpret_cast<float*>(shared) - first), max(sum + n), gate(max + n) {}
    __device__ int* argmax() const { return reinterpret_cast<int*>(gate); }
    __device__ __forceinline__ Pooled get(int i) const { return {sum[i], {max[i], argmax()[i]}}; }
    template <int W> __device__ __forceinline__ void put(int i, const Pooled (&v)[W]) const {
        float sums[W], maxima[W], indices[W];
#pragma unroll
        for (int j = 0; j < W; ++j)
            sums[j] = v[j].sum, maxima[j] = v[j].max.value, memcpy(indices + j, &v[j].max.index, sizeof(float));
        store_numbers(sum + i, sums);
        store_numbers(max + i, maxima);
        store_numbers(gate + i, indices);
    }
    __device__ __forceinline__ Pooled get(const Blocks& blocks, int rank, int i) const {
        return {*blocks.of(rank, sum + i), {*blocks.of(rank, max + i), *blocks.of(rank, argmax() + i)}};
    }
};

template <bool gated, class T> __device__ __forceinline__ float element(T x, const float* factor) {
    return gated ? to_acc(x) * *factor : to_acc(x);
}

// Writes mean, maximum and argmax of each of the block's rows to means (maxima o.rows after the means), argmax and
// row_pools. If rows are pixels, it writes row_pools of all blocks, because the convolution reads pixels of other
// blocks. gated: x is multiplied by the factors of the columns.
template <bool gated, class Block>
__device__ __forceinline__ void pool_rows(const Block& b, const float* factor, float* means, int32_t* argmax) {
    using T = typename Block::T;
    const OnChip& o = b.o;
    with_word<T>(o.cols, [&](auto word) {
        constexpr int W = decltype(word)::value;
        reduce_rows<Pooled, W>(o, b.rows, b.row_partials, [&](auto& a, auto start, int first, int last, int step) {
#pragma unroll 1
            for (int col = first; col < last; col += step) {
                float f[W];
                if constexpr (gated) load_numbers(factor + col, f);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) {
                    Packed<T, W> elements;
                    elements.load(b.x + start(i) + col);
                    float v[W];
                    elements.unpack(v);
#pragma unroll
                    for (int j = 0; gated && j < W; ++j) v[j] *= f[j];
                    const float greatest = gated ? greatest_of(v) : greatest_of(elements);
                    a[i].add(sum_of(v), greatest, col);
                }
            }
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (!a[i].has_nan()) continue;
                for (int col = first; col < last; col += step)
#pragma unroll 1
                    for (int j = col; j < col + W; ++j)
                        a[i].look_for_nan(element<gated>(b.x[start(i) + j], factor + j), j);
            }
        });
    });
    __syncthreads();
    for (int row = int(threadIdx.x); row < b.rows; row += kOnChipThreads) {
        const int i = b.row_range.first + row;
        const Pooled a = join_slices(o, b.rows, row, b.row_partials);
        const float mean = a.sum / o.cols, max = a.max.value;
        int index = a.argmax();  // of the first element of the word that has the maximum
        while (max > -INFINITY && element<gated>(b.x[row * o.cols + index], factor + index) != max) ++index;
        means[i] = mean;
        means[o.rows + i] = max;
        argmax[i] = index;
        store_number<Block::channels_last>(b.blocks, b.row_pools.sum + i, mean);
        store_number<Block::channels_last>(b.blocks, b.row_pools.max + i, max);
    }
}

// Adds N rows from ``row`` on to the pools of W columns. x and factor point to the first row. The argmax is ``row``
// until pool_columns finds the row of the maximum.
template <bool gated, int N, int W, class T>
__device__ __forceinline__ void add_rows(Pooled (&a)[W], const T* x, int cols, const float* factor, int row) {
    Packed<T, W> words[N];
    float total[W] = {}, greatest[W];
#pragma unroll
    for (int i = 0; i < N; ++i) words[i].load(x + i * cols);
    if constexpr (!gated) greatest_of(words, greatest);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        float v[W];
        words[i].unpack(v);
#pragma unroll
        for (int j = 0; j < W; ++j) {
            if constexpr (gated) {
                v[j] *= factor[i];
                greatest[j] = i ? fmaxf(greatest[j], v[j]) : v[j];
            }
            total[j] = i ? total[j] + v[j] : v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < W; ++j) a[j].add(total[j], greatest[j], row);
}

// Like pool_rows, for each column. A block pools all columns over its rows, then merges its range of columns over the
// blocks. gated: x is multiplied by the factors of the rows.
template <bool gated, class Block>
__device__ __forceinline__ void pool_columns(const Block& b, const float* factor, float* means, int32_t* argmax) {
    using T = typename Block::T;
    const OnChip& o = b.o;
    const int first_row = b.row_range.first;
    const Pools& pools = b.column_pools;
    const auto value = [&](int row, int col) {
        return element<gated>(b.x[row * o.cols + col], factor + first_row + row);
    };
    with_word<T>(o.cols, [&](auto word) {
        constexpr int W = decltype(word)::value;
        reduce_columns<Pooled, W>(o.cols, o.groups, pools, [&](auto& a, int group, int col) {
            const auto add = [&](auto count, int row) {
                add_rows<gated, decltype(count)::value>(a, b.x + row * o.cols + col, o.cols, factor + first_row + row,
                                                        first_row + row);
            };
            int row = group * kBatch;
#pragma unroll 1
            for (; row + kBatch <= b.rows; row += o.groups * kBatch) add(Word<kBatch>{}, row);
#pragma unroll 1
            for (; row < b.rows; ++row) add(Word<1>{}, row);
#pragma unroll
            for (int j = 0; j < W; ++j)
                for (int first = group * kBatch; a[j].has_nan() && first < b.rows; first += o.groups * kBatch)
                    for (row = first; row < min(first + kBatch, b.rows); ++row)
                        a[j].look_for_nan(value(row, col + j), first_row + row);
        });
    });
    // Finds the argmax among this block's rows before other blocks read it.
    __syncthreads();
    for (int col = int(threadIdx.x); col < o.cols; col += kOnChipThreads) {
        const Maximum<float> max = pools.get(col).max;
        int index = max.index;
        if (index == Pooled::kNone || max.value != max.value) continue;
        while (value(index - first_row, col) != max.value) ++index;
        pools.argmax()[col] = index;
    }
    b.sync();
    for (int col = b.column_range.first + int(threadIdx.x); col < b.column_range.last; col += kOnChipThreads) {
        const Pooled a = join_blocks(b.blocks, pools, col);
        const float mean = a.sum / o.rows;
        means[col] = mean;
        means[o.cols + col] = a.max.value;
        argmax[col] = a.argmax();
        store_number<!Block::channels_last>(b.blocks, pools.sum + col, mean);
        store_number<!Block::channels_last>(b.blocks, pools.max + col, a.max.value);
    }
}

}  // namespace cbam::cuda
