// y = relu(x g s + residual). The gates of the columns stay in registers while a thread goes down its rows.
#pragma once

#include "tile.cuh"

namespace cbam::cuda {

// For a part of at most lanes V columns. x, residual, y and the gates belong to one image.
template <class T, int V, bool with_residual, bool with_relu>
__device__ __forceinline__ void scale(const T* x, const T* residual, T* y, const Tiling& t, const Tile& tile,
                                      const Acc<T>* row_gate, const Acc<T>* column_gate, unsigned char* shared) {
    using F = Acc<T>;
    const TileSides<F, V> gates(shared, t);
    const int col = tile.col + tile.lane * V, step = tile.groups * kBatch;
    F factor[V] = {};
    const auto finish = [&](int64_t at, const Packed<T, V>& word, const Packed<T, V>& to_add, F g) {
        F v[V];
        [[maybe_unused]] F add[V];
        word.unpack(v);
        if constexpr (with_residual) to_add.unpack(add);
        Packed<T, V> result;
#pragma unroll
        for (int j = 0; j < V; ++j) {
            v[j] = v[j] * g * factor[j];
            if constexpr (with_residual) v[j] += add[j];
            result.v[j] = from_acc<T>(v[j]);
        }
        if constexpr (with_relu) relu(result);
        result.store(y + at);
    };
    const auto visit = [&](int run, int last) {
        if (col >= tile.col_end) return;
        if (run == tile.row) gates.columns.load(tile.lane, factor);
        int row = run + tile.group * kBatch;
        int64_t at = offset(t, row, col);
#pragma unroll 1
        for (; row + kBatch <= last; row += step, at += int64_t(step) * t.cols) {
            Packed<T, V> words[kBatch], add[kBatch];
            F g[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                words[i].load(x + at + i * int64_t(t.cols));
                if constexpr (with_residual) add[i].load(residual + at + i * int64_t(t.cols));
            }
            load_numbers(gates.rows + row - run, g);
#pragma unroll
            for (int i = 0; i < kBatch; ++i) finish(at + i * int64_t(t.cols), words[i], add[i], g[i]);
        }
#pragma unroll 1
        for (; row < last; ++row, at += t.cols) {  // one group has fewer than kBatch rows left
            Packed<T, V> word, add;
            word.load(x + at);
            if constexpr (with_residual) add.load(residual + at);
            finish(at, word, add, gates.rows[row - run]);
        }
    };
    each_run(
        tile, [&](int row, int i) { gates.rows[i] = row_gate ? row_gate[row] : F(1); },
        [&](int col, int i) { gates.columns.at(i) = column_gate ? column_gate[col] : F(1); }, visit);
}

template <class T, int V> __device__ __forceinline__ void scale(const T* x, const T* residual, T* y, const Tiling& t,
                                                                const Tile& tile, const Acc<T>* row_gate,
                                                                const Acc<T>* column_gate, bool with_relu,
                                                                unsigned char* shared) {
    if (residual && with_relu) scale<T, V, true, true>(x, residual, y, t, tile, row_gate, column_gate, shared);
    else if (residual) scale<T, V, true, false>(x, residual, y, t, tile, row_gate, column_gate, shared);
    else if (with_relu) scale<T, V, false, true>(x, residual, y, t, tile, row_gate, column_gate, shared);
    else scale<T, V, false, false>(x, residual, y, t, tile, row_gate, column_gate, shared);
}

}  // namespace cbam::cuda
