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

template <class T, int V, class Operation> __global__ void __launch_bounds__(kThreads)
    reduce_along(const T* x, Tiling t, Operation of_all) {
    using Sum = typename Operation::Sum;
    const Tile tile(t);
    const Operation operation = of_all.of(tile.image);
    x += tile.image * t.rows * t.cols;
    for (int first = tile.row; first < tile.row_end; first += tile.groups * kBatch) {
        const int row = first + tile.group * kBatch, start = tile.col + tile.lane * V;
        Sum sums[kBatch];
        for (int i = 0; i < kBatch; ++i) sums[i] = operation.start(start);
        for (int col = start; col < tile.col_end; col += t.lanes * V) {
            Acc<T> v[kBatch][V] = {};
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (row + i < tile.row_end) load<V>(x + place(t, row + i, col), v[i]);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const auto factor = operation.factor(col + j);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) operation.add(sums[i], v[i][j], factor, row + i, col + j);
            }
        }
        const Sum sum = merge_lanes(sums, t.lanes);
        if (tile.lane < kBatch && row + tile.lane < tile.row_end) operation.store(sum, row + tile.lane, tile.col_tile);
    }
}

template <class T, int V, class Operation> __global__ void __launch_bounds__(kThreads)
    reduce_across(const T* x, Tiling t, Operation of_all) {
    using Sum = typename Operation::Sum;
    CBAM_SHARED(shared);
    const Tile tile(t);
    const Operation operation = of_all.of(tile.image);
    const int col = tile.col + tile.lane * V, start = tile.row + tile.group * kBatch;
    x += tile.image * t.rows * t.cols;
    Sum sums[V];
    for (int j = 0; j < V; ++j) sums[j] = operation.start(start);
    for (int row = start; row < tile.row_end && col < tile.col_end; row += tile.groups * kBatch) {
        Acc<T> v[kBatch][V] = {};
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
            if (row + i < tile.row_end) load<V>(x + place(t, row + i, col), v[i]);
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (row + i >= tile.row_end) break;
            const auto factor = operation.factor(row + i);
#pragma unroll
            for (int j = 0; j < V; ++j) operation.add(sums[j], v[i][j], factor, col + j, row + i);
        }
    }
    const Sum sum = merge_groups(sums, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end) operation.store(sum, mine, tile.row_tile);
}

}  // namespace cbam::cuda
