// The last pass of the forward: y = relu(x g s + residual). Reads x, and the residual if there is one, and writes y.
// The factors of the columns stay in registers while a thread goes down its rows.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

template <class T, int V> __global__ void __launch_bounds__(kThreads, 3)
    scale(const T* x, const T* residual, T* y, Tiling t, Rows<const Acc<T>> row_gate, Rows<const Acc<T>> column_gate,
          bool with_relu) {
    using F = Acc<T>;
    CBAM_SHARED(shared);
    const Tile tile(t);
    const TileSides<F> gates(shared, t);
    const F *of_column = column_gate.of(tile.image), *of_row = row_gate.of(tile.image);
    gates.fill(tile, [&](int i) { return of_column[i]; }, [&](int i) { return of_row[i]; });
    const int col = tile.col + tile.lane * V;
    if (col >= tile.col_end) return;
    const int64_t image = tile.image * t.rows * t.cols;
    F factor[V];
    for (int j = 0; j < V; ++j) factor[j] = gates.columns.get(tile.lane * V + j);
    for (int row = tile.row + tile.group * kBatch; row < tile.row_end; row += tile.groups * kBatch) {
        Packed<T, V> of_x[kBatch], of_residual[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (row + i >= tile.row_end) break;
            of_x[i].load(x + image + place(t, row + i, col));
            if (residual) of_residual[i].load(residual + image + place(t, row + i, col));
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (row + i >= tile.row_end) break;
            const F g = gates.rows.get(row + i - tile.row);
            F v[V], add[V] = {};
            of_x[i].unpack(v);
            if (residual) of_residual[i].unpack(add);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                v[j] = v[j] * g * factor[j] + add[j];
                if (with_relu) v[j] = relu(v[j]);
            }
            store<V>(y + image + place(t, row + i, col), v);
        }
    }
}

}  // namespace cbam::cuda
