// y = relu(x g s + residual). The factors of the columns stay in registers while a thread goes down its rows.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

// Of a part of at most lanes V columns.
template <class T, int V> __device__ __forceinline__ void scale(const T* x, const T* residual, T* y, const Tiling& t,
                                                                const Tile& tile, const Acc<T>* row_gate,
                                                                const Acc<T>* column_gate, bool with_relu,
                                                                unsigned char* shared) {
    using F = Acc<T>;
    const TileSides<F, V> gates(shared, t);
    const int col = tile.col + tile.lane * V;
    F factor[V];
    const auto visit = [&](int run, int last) {
        if (col >= tile.col_end) return;
        if (run == tile.row)
            for (int j = 0; j < V; ++j) factor[j] = gates.columns.get(tile.lane * V + j);
        for (int row = run + tile.group * kBatch; row < last; row += tile.groups * kBatch) {
            Packed<T, V> of_x[kBatch], of_residual[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (row + i >= last) break;
                of_x[i].load(x + place(t, row + i, col));
                if (residual) of_residual[i].load(residual + place(t, row + i, col));
            }
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (row + i >= last) break;
                const F g = gates.rows.get(row + i - run);
                F v[V], add[V] = {};
                of_x[i].unpack(v);
                if (residual) of_residual[i].unpack(add);
#pragma unroll
                for (int j = 0; j < V; ++j) {
                    v[j] = v[j] * g * factor[j] + add[j];
                    if (with_relu) v[j] = relu(v[j]);
                }
                store<V>(y + place(t, row + i, col), v);
            }
        }
    };
    const auto of = [](const F* gate, int i) { return gate ? gate[i] : F(1); };
    gates.each_run(tile, [&](int i) { return of(column_gate, i); }, [&](int i) { return of(row_gate, i); }, visit);
}

}  // namespace cbam::cuda
