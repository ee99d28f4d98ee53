// The two ways in which a pass reduces its images: along the rows of the matrix, or across them. What it sums is an
// Operation: Pool (staged_pool.cuh) over pixels or channels, MapProducts (staged_products.cuh) over pixels. So Pool
// along the rows is the channel pool of NCHW and the spatial pool of channels_last, and across the rows the other two.
// Both read x once and write one Sum of the operation for each row, or column, of each tile.
//
// An Operation has
//   Sum, Factor     what is merged, and what an element is multiplied by
//   factor(i)       of the reduced index i
//   start(i)        an empty sum of elements from index i on
//   add(sum, v, factor, kept, i)
//   store(sum, kept)
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

template <class T, int V, class Operation>
__device__ __forceinline__ void reduce_along(const T* x, const Tiling& t, const Tile& tile, const Operation& operation,
                                             unsigned char* shared) {
    using Sum = typename Operation::Sum;
    const SharedArray<typename Operation::Factor> factors(shared, kStaged);
    const int start = tile.lane * V;
    for (int row0 = tile.row; row0 < tile.row_end; row0 += tile.groups * kBatch) {
        const int row = row0 + tile.group * kBatch;
        Sum sums[kBatch];
        for (int i = 0; i < kBatch; ++i) sums[i] = operation.start(tile.col + start);
        for (int first = tile.col; first < tile.col_end; first += kStaged) {
            const int last = min(first + kStaged, tile.col_end);
            if (row0 == tile.row || tile.col_end - tile.col > kStaged) {
                __syncthreads();
                factors.fill(first, last, [&](int i) { return operation.factor(i); });
                __syncthreads();
            }
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
        if (tile.lane < kBatch && row + tile.lane < tile.row_end) operation.store(sum, row + tile.lane);
    }
}

// Of at most lanes V columns.
template <class T, int V, class Operation>
__device__ __forceinline__ void reduce_across(const T* x, const Tiling& t, const Tile& tile, const Operation& operation,
                                              unsigned char* shared) {
    using Sum = typename Operation::Sum;
    const SharedArray<typename Operation::Factor> factors(shared + kMergeBytes<Sum, V>, kStaged);
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
    if (column < t.lanes * V && mine < tile.col_end) operation.store(sum, mine);
}

// Shared memory of reduce_across, or of reduce_along.
template <int V, class Operation> constexpr size_t reduce_bytes(bool across) {
    return (across ? kMergeBytes<typename Operation::Sum, V> : 0) +
           SharedArray<typename Operation::Factor>::bytes(kStaged);
}

}  // namespace cbam::cuda
