// Reductions along the rows of the image's matrix (reduce_along) or down its columns (reduce_across). An Operation is
// Pool (pool.cuh) over pixels or channels, or MapProducts (products.cuh) over pixels. Pool along the rows is the
// channel pool of NCHW and the maps of channels_last. Both functions read x once and store a Sum per row or column.
//
// An Operation has
//   Sum, kFactors   the accumulator; whether elements are multiplied by factor(i), where i is the reduced index
//   start(i)        an empty Sum for elements from index i on
//   add(sum, word, factors, i)     adds a word, whose elements have the reduced indices from i on
//   add(sums, words, factors, i)   adds words, which have the reduced indices from i on, to the Sums of V columns
//   finish(sum, first, last, step, n, value)   ends a thread's Sum of runs of n indices; value(i) is an element
//   store<n>(sum, kept, read)      read(i, v) reads n elements from index i on, times their factors; NaN past the end
#pragma once

#include "tile.cuh"

namespace cbam::cuda {

template <class T, int V, class Operation>
__device__ __forceinline__ void reduce_along(const T* x, const Tiling& t, const Tile& tile, const Operation& operation,
                                             unsigned char* shared) {
    using F = Acc<T>;
    using Sum = typename Operation::Sum;
    const WordNumbers<F, V> factors(shared, kStaged);
    const int start = tile.lane * V, step = t.lanes * V;
    for (int row0 = tile.row; row0 < tile.row_end; row0 += tile.groups * kBatch) {
        const int row = row0 + tile.group * kBatch, rows = min(kBatch, tile.row_end - row);
        const auto of_row = [&](int i) { return x + offset(t, row + min(i, rows - 1), 0); };  // repeats the last row
        Sum sums[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) sums[i] = operation.start(tile.col + start);
        for (int first = tile.col; first < tile.col_end; first += Operation::kFactors ? kStaged : t.cols) {
            int last = tile.col_end;
            if constexpr (Operation::kFactors) {
                last = min(first + kStaged, last);
                if (row0 == tile.row || tile.col_end - tile.col > kStaged) {
                    __syncthreads();
                    for (int i = threadIdx.x; i < last - first; i += kThreads)
                        factors.at(i) = operation.factor(first + i);
                    __syncthreads();
                }
            }
            if (rows <= 0) continue;
            const char* rows_at[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) rows_at[i] = reinterpret_cast<const char*>(of_row(i) + first + start);
            int word = tile.lane;
            uint64_t bytes = 0;
#pragma unroll 1
            for (int col = first + start; col < last; col += step, word += t.lanes, bytes += step * sizeof(T)) {
                Packed<T, V> words[kBatch];
#pragma unroll
                for (int i = 0; i < kBatch; ++i) words[i].load(reinterpret_cast<const T*>(rows_at[i] + bytes));
                F factor[V];
                if constexpr (Operation::kFactors) factors.load(word, factor);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) operation.add(sums[i], words[i], factor, col);
            }
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
            if (rows > 0)
                operation.finish(sums[i], tile.col + start, tile.col_end, step, V,
                                 [&](int col) { return to_acc(of_row(i)[col]); });
        const Sum sum = merge_lanes(sums, t.lanes);
        const int mine = row + tile.lane;
        if (tile.lane < kBatch && mine < tile.row_end)
            operation.template store<V>(sum, mine, [&](int col, F(&v)[V]) {
                load<V>(x + offset(t, mine, col), v);
                if constexpr (Operation::kFactors) {
                    F factor[V];
                    if (tile.col_end - tile.col <= kStaged) factors.load((col - tile.col) / V, factor);
                    else
                        for (int j = 0; j < V; ++j) factor[j] = operation.factor(col + j);
#pragma unroll
                    for (int j = 0; j < V; ++j) v[j] *= factor[j];
                }
            });
    }
}

// For at most lanes V columns.
template <class T, int V, class Operation>
__device__ __forceinline__ void reduce_across(const T* x, const Tiling& t, const Tile& tile, const Operation& operation,
                                              unsigned char* shared) {
    using F = Acc<T>;
    using Sum = typename Operation::Sum;
    F* const factors = reinterpret_cast<F*>(shared + kMergeBytes<Sum, V>);
    const int col = tile.col + tile.lane * V, start = tile.group * kBatch, step = tile.groups * kBatch;
    Sum sums[V];
#pragma unroll
    for (int j = 0; j < V; ++j) sums[j] = operation.start(tile.row + start);
    if constexpr (!Operation::kFactors) __syncthreads();
    for (int first = tile.row; first < tile.row_end; first += Operation::kFactors ? kStaged : t.rows) {
        int last = tile.row_end;
        if constexpr (Operation::kFactors) {
            last = min(first + kStaged, last);
            __syncthreads();
            for (int i = threadIdx.x; i < last - first; i += kThreads) factors[i] = operation.factor(first + i);
            __syncthreads();
        }
        if (col >= tile.col_end) continue;
        int row = first + start;
        const T* at = x + offset(t, row, col);
#pragma unroll 1
        for (; row + kBatch <= last; row += step, at += int64_t(step) * t.cols) {
            Packed<T, V> words[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) words[i].load(at + i * int64_t(t.cols));
            F factor[kBatch];
            if constexpr (Operation::kFactors) load_numbers(factors + row - first, factor);
            operation.add(sums, words, factor, row);
        }
#pragma unroll 1
        for (; row < last; ++row, at += t.cols) {  // one group has fewer than kBatch rows left
            Packed<T, V> word[1];
            word[0].load(at);
            F factor[1];
            if constexpr (Operation::kFactors) factor[0] = factors[row - first];
            operation.add(sums, word, factor, row);
        }
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
        if (col < tile.col_end)
            operation.finish(sums[j], tile.row + start, tile.row_end, step, kBatch,
                             [&](int row) { return to_acc(x[offset(t, row, col + j)]); });
    const Sum sum = merge_groups(sums, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end)
        operation.template store<kBatch>(sum, mine, [&](int row, F(&v)[kBatch]) {
            const bool here = tile.row_end - tile.row <= kStaged;
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                v[i] = row + i < tile.row_end ? to_acc(x[offset(t, row + i, mine)]) : F(NAN);
                if constexpr (Operation::kFactors)
                    if (row + i < tile.row_end) v[i] *= here ? factors[row + i - tile.row] : operation.factor(row + i);
            }
        });
}

// Shared memory of reduce_across or reduce_along, in bytes.
template <class F, int V, class Operation> constexpr size_t reduce_bytes(bool across) {
    return (across ? kMergeBytes<typename Operation::Sum, V> : 0) +
           (Operation::kFactors ? WordNumbers<F, V>::bytes(kStaged) : 0);
}

}  // namespace cbam::cuda
