// The last pass of the forward: y = relu(x g s + residual). Reads x, and the residual if there is one, and writes y.
// The factors of the columns stay in registers while a thread goes down its rows.
#pragma once

#include "staged_tile.cuh"
#include "words.cuh"

namespace cbam::cuda {

template <class T, int V> size_t apply_bytes(const Tiling& t) {
    return row_numbers(t) * sizeof(Acc<T>) + WordNumbers<Acc<T>, V>::bytes(t.tile_cols);
}

// Of a tile; x, residual and y begin at its image, row_gate and column_gate are those of the image.
template <int V, bool with_residual, bool with_relu, class T>
__device__ __forceinline__ void apply_tile(const T* x, const T* residual, T* y, const Tiling& t, const Tile& tile,
                                           const Acc<T>* row_gate, const Acc<T>* column_gate, unsigned char* shared) {
    using F = Acc<T>;
    F* const gates = reinterpret_cast<F*>(shared);
    const WordNumbers<F, V> column_gates(gates + row_numbers(t), t.tile_cols);
    fill_sides(
        tile, [&](int i) { gates[i - tile.row] = row_gate[i]; },
        [&](int i) { column_gates.at(i - tile.col) = column_gate[i]; });
    const int col = tile.col + tile.lane * V;
    if (col >= tile.col_end) return;
    F factor[V];
    column_gates.load(tile.lane, factor);
    const auto finish = [&](int64_t at, const Packed<T, V>& word, const Packed<T, V>& to_add, F g) {
        F v[V], add[V];
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
    int row = tile.row + tile.group * kBatch;
    const int step = tile.groups * kBatch;
    int64_t at = place(t, row, col);
#pragma unroll 1
    for (; row + kBatch <= tile.row_end; row += step, at += int64_t(step) * t.cols) {
        Packed<T, V> words[kBatch], add[kBatch];
        F g[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            words[i].load(x + at + i * int64_t(t.cols));
            if constexpr (with_residual) add[i].load(residual + at + i * int64_t(t.cols));
        }
        load_numbers(gates + row - tile.row, g);
#pragma unroll
        for (int i = 0; i < kBatch; ++i) finish(at + i * int64_t(t.cols), words[i], add[i], g[i]);
    }
#pragma unroll 1
    for (; row < tile.row_end; ++row, at += t.cols) {  // of the one group that has fewer
        Packed<T, V> word, add;
        word.load(x + at);
        if constexpr (with_residual) add.load(residual + at);
        finish(at, word, add, gates[row - tile.row]);
    }
}

template <class T, int V, bool with_residual, bool with_relu> __global__ void __launch_bounds__(kThreads, 3)
    scale(const T* x, const T* residual, T* y, Tiling t, Rows<const Acc<T>> row_gate, Rows<const Acc<T>> column_gate) {
    CBAM_SHARED(shared);
    const Tile tile(t);
    const int64_t image = tile.image * t.rows * t.cols;
    apply_tile<V, with_residual, with_relu>(x + image, residual + image, y + image, t, tile, row_gate.of(tile.image),
                                            column_gate.of(tile.image), shared);
}

}  // namespace cbam::cuda
