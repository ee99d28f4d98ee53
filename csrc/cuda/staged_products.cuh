// The first pass of the backward, and its second over x.
//
// products reads x and dy, behind a ReLU also y, and then writes the masked dy. For each tile it leaves the sums of
// s x dy over its pixels and of g x dy over its channels, 4 / tile_cols + 4 / tile_rows bytes for an element; join
// (staged_join.cuh) adds them up. MapProducts, an Operation of staged_reduce.cuh, reads x: what reaches the channel
// gate through the two maps.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

// By rows and columns of the matrix: along[row] = sum over columns of column_gate x dy, down[column] = sum over rows of
// row_gate x dy. Images have (col_tiles, rows) and (row_tiles, cols) of them.
template <class T, int V> __global__ void __launch_bounds__(kThreads, 3)
    products(const T* x, const T* dy, const T* y, T* masked, Tiling t, Rows<const Acc<T>> row_gate,
             Rows<const Acc<T>> column_gate, Acc<T>* along, Acc<T>* down) {
    using F = Acc<T>;
    CBAM_SHARED(shared);
    const Tile tile(t);
    const TileSides<F> gates(shared + kMergeBytes<F, V>, t);
    const F *of_column = column_gate.of(tile.image), *of_row = row_gate.of(tile.image);
    gates.fill(tile, [&](int i) { return of_column[i]; }, [&](int i) { return of_row[i]; });
    const int64_t image = tile.image * t.rows * t.cols;
    const int col = tile.col + tile.lane * V;
    const bool in_cols = col < tile.col_end;
    along += (tile.image * t.col_tiles + tile.col_tile) * t.rows;
    down += (tile.image * t.row_tiles + tile.row_tile) * t.cols;
    F factor[V] = {}, of_columns[V] = {};
    for (int j = 0; j < V && in_cols; ++j) factor[j] = gates.columns.get(tile.lane * V + j);
    for (int first = tile.row; first < tile.row_end; first += tile.groups * kBatch) {
        const int row = first + tile.group * kBatch;
        Packed<T, V> of_x[kBatch] = {}, of_dy[kBatch] = {};
        F of_rows[kBatch] = {};
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (!in_cols || row + i >= tile.row_end) break;
            const int64_t at = image + place(t, row + i, col);
            of_x[i].load(x + at);
            of_dy[i].load(dy + at);
            if (y) {
                Packed<T, V> result;
                result.load(y + at);
#pragma unroll
                for (int j = 0; j < V; ++j)
                    if (to_acc(result.v[j]) <= 0) of_dy[i].v[j] = from_acc<T>(0);
                of_dy[i].store(masked + at);
            }
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const F g = row + i < tile.row_end ? gates.rows.get(row + i - tile.row) : F(0);
            F v[V], d[V];
            of_x[i].unpack(v);
            of_dy[i].unpack(d);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const F product = v[j] * d[j];
                of_rows[i] += factor[j] * product;
                of_columns[j] += g * product;
            }
        }
        const F sum = merge_lanes(of_rows, t.lanes);
        if (tile.lane < kBatch && row + tile.lane < tile.row_end) along[row + tile.lane] = sum;
    }
    const F sum = merge_groups(of_columns, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end) down[mine] = sum;
}

// Sums over the pixels of x times the gradient of g x through the two maps: (parts, C) for each image.
template <class F> struct MapProducts {
    using Sum = F;
    struct Factor {
        F mean, max;
        int argmax;
    };

    Rows<const F> mean, max;
    Rows<const int32_t> argmax;
    Rows<F> sums;
    int C;

    __device__ __forceinline__ MapProducts of(int64_t image) const {
        return {{mean.of(image), 0}, {max.of(image), 0}, {argmax.of(image), 0}, {sums.of(image), 0}, C};
    }
    __device__ __forceinline__ Factor factor(int p) const { return {mean.data[p], max.data[p], argmax.data[p]}; }
    __device__ __forceinline__ Sum start(int) const { return F(0); }
    __device__ __forceinline__ void add(Sum& sum, F v, Factor factor, int c, int) const {
        sum += v * (factor.mean + (factor.argmax == c ? factor.max : F(0)));
    }
    __device__ __forceinline__ void store(Sum sum, int c, int part) const { sums.data[int64_t(part) * C + c] = sum; }
};

}  // namespace cbam::cuda
