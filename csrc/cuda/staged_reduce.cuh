// The two ways in which a pass reduces its images: along the rows of the matrix, or across them. What it sums is an
// Operation: Pool (staged_pool.cuh) over pixels or channels, MapProducts (staged_products.cuh) over pixels. So Pool
// along the rows is the channel pool of NCHW and the spatial pool of channels_last, and across the rows the other two.
// Both read x once and write one Sum of the operation for each row, or column, of each tile.
//
// An Operation has
//   Sum, Factor     what is merged, and what an element is multiplied by
//   of(image)       itself, for one image
//   factor(i)       of the reduced index i
//   start(i)        an empty sum of elements from index i on
//   add(sum, v, factor, kept, i)
//   store(sum, kept, part)   part: which tile of the reduced side
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

constexpr int kStaged = 1024;  // factors that lie in shared memory at a time: those of several steps of a block

// Of reduce_along three blocks are asked for on a multiprocessor: so ptxas does not spill to fit a fourth.

template <class T, int V, class Operation> __global__ void __launch_bounds__(kThreads, 3)
    reduce_along(const T* x, Tiling t, Operation of_all) {
    using Sum = typename Operation::Sum;
    CBAM_SHARED(shared);
    const Tile tile(t);
    const Operation operation = of_all.of(tile.image);
    const SharedArray<typename Operation::Factor> factors(shared, kStaged);
    x += tile.image * t.rows * t.cols;
    const int row = tile.row + tile.group * kBatch, start = tile.lane * V;
    Sum sums[kBatch];
    for (int i = 0; i < kBatch; ++i) sums[i] = operation.start(tile.col + start);
    for (int first = tile.col; first < tile.col_end; first += kStaged) {
        const int last = min(first + kStaged, tile.col_end);
        __syncthreads();
        factors.fill(first, last, [&](int i) { return operation.factor(i); });
        __syncthreads();
        for (int col = first + start; col < last; col += t.lanes * V) {
            Packed<T, V> packed[kBatch] = {};
            const T* const at = x + place(t, row, col);
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (row + i < tile.row_end) packed[i].load(at + i * int64_t(t.cols));
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const auto factor = factors.get(col + j - first);
#pragma unroll
                for (int i = 0; i < kBatch; ++i)
                    operation.add(sums[i], to_acc(packed[i].v[j]), factor, row + i, col + j);
            }
        }
    }
    const Sum sum = merge_lanes(sums, t.lanes);
    if (tile.lane < kBatch && row + tile.lane < tile.row_end) operation.store(sum, row + tile.lane, tile.col_tile);
}

template <class T, int V, class Operation> __global__ void __launch_bounds__(kThreads)
    reduce_across(const T* x, Tiling t, Operation of_all) {
    using Sum = typename Operation::Sum;
    CBAM_SHARED(shared);
    const Tile tile(t);
    const Operation operation = of_all.of(tile.image);
    const SharedArray<typename Operation::Factor> factors(shared + kMergeBytes<Sum, V>, kStaged);
    x += tile.image * t.rows * t.cols;
    const int col = tile.col + tile.lane * V, start = tile.group * kBatch;
    Sum sums[V];
    for (int j = 0; j < V; ++j) sums[j] = operation.start(tile.row + start);
    for (int first = tile.row; first < tile.row_end; first += kStaged) {
        const int last = min(first + kStaged, tile.row_end);
        __syncthreads();
        factors.fill(first, last, [&](int i) { return operation.factor(i); });
        __syncthreads();
        for (int row = first + start; row < last && col < tile.col_end; row += tile.groups * kBatch) {
            Packed<T, V> packed[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (row + i < last) packed[i].load(x + place(t, row + i, col));
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (row + i >= last) break;
                const auto factor = factors.get(row + i - first);
#pragma unroll
                for (int j = 0; j < V; ++j) operation.add(sums[j], to_acc(packed[i].v[j]), factor, col + j, row + i);
            }
        }
    }
    const Sum sum = merge_groups(sums, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end) operation.store(sum, mine, tile.row_tile);
}

}  // namespace cbam::cuda
