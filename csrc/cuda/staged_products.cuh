// The first pass of the backward, and its second over x.
//
// products reads x and dy, behind a ReLU also y, and then writes the masked dy. For each tile it leaves the sums of
// s x dy over its pixels and of g x dy over its channels, 4 / tile_cols + 4 / tile_rows bytes for an element; join
// (staged_join.cuh) adds them up. MapProducts, an Operation of staged_reduce.cuh, reads x: what reaches the channel
// gate through the two maps.
#pragma once

#include "max_terms.cuh"
#include "staged_tile.cuh"
#include "words.cuh"

namespace cbam::cuda {

// By rows and columns of the matrix: along[row] = sum over columns of column_gate x dy, down[column] = sum over rows of
// row_gate x dy. Images have (col_tiles, rows) and (row_tiles, cols) of them. ``masked``: behind a ReLU, dy where y is
// not above zero is zero.
template <class T, int V> struct ProductTensors {
    const T *x, *dy, *y;  // y and masked only behind a ReLU
    T* masked;

    template <bool with_relu> __device__ __forceinline__ ProductTensors at(int64_t i) const {
        return {x + i, dy + i, with_relu ? y + i : nullptr, with_relu ? masked + i : nullptr};
    }
};

template <class T, int V> size_t products_bytes(const Tiling& t) {
    return kMergeBytes<Acc<T>, V> + row_numbers(t) * sizeof(Acc<T>) + WordNumbers<Acc<T>, V>::bytes(t.tile_cols);
}

template <bool with_relu, class T, int V> __device__ __forceinline__ void load_products(const ProductTensors<T, V>& of,
                                                                                        int64_t at, Packed<T, V>& x,
                                                                                        Packed<T, V>& dy) {
    x.load(of.x + at);
    dy.load(of.dy + at);
    if constexpr (with_relu) {
        Packed<T, V> y;
        y.load(of.y + at);
        mask_by(y, dy);
        dy.store(of.masked + at);
    }
}

// Of a tile; row_gate and column_gate are those of its image, along and down those of its parts.
template <bool with_relu, class T, int V>
__device__ __forceinline__ void products_tile(const ProductTensors<T, V>& image, const Tiling& t, const Tile& tile,
                                              const Acc<T>* row_gate, const Acc<T>* column_gate, Acc<T>* along,
                                              Acc<T>* down, unsigned char* shared) {
    using F = Acc<T>;
    F* const gates = reinterpret_cast<F*>(shared + kMergeBytes<F, V>);
    const WordNumbers<F, V> column_gates(gates + row_numbers(t), t.tile_cols);
    fill_sides(
        tile, [&](int i) { gates[i - tile.row] = row_gate[i]; },
        [&](int i) { column_gates.at(i - tile.col) = column_gate[i]; });
    const int col = tile.col + tile.lane * V;
    const bool in_cols = col < tile.col_end;
    F factor[V] = {}, of_columns[V] = {};
    if (in_cols) column_gates.load(tile.lane, factor);
    const auto add = [&](const Packed<T, V>& x, const Packed<T, V>& dy, F g, F& of_row) {
        F v[V], d[V];
        x.unpack(v);
        dy.unpack(d);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            const F product = v[j] * d[j];
            of_row += factor[j] * product;
            of_columns[j] += g * product;
        }
    };
    const int step = tile.groups * kBatch, steps = (tile.row_end - tile.row) / step;  // of the block
    int row = tile.row + tile.group * kBatch;
    auto at = image.template at<with_relu>(place(t, row, col));
    const F* gates_at = gates + row - tile.row;
    F* along_at = along + row + tile.lane;
#pragma unroll 1
    for (int left = steps; left > 0; --left, gates_at += step, along_at += step) {
        F of_rows[kBatch] = {};
        if (in_cols) {
            Packed<T, V> x[kBatch], dy[kBatch];
            F g[kBatch];
            load_numbers(gates_at, g);
#pragma unroll
            for (int i = 0; i < kBatch; ++i) load_products<with_relu>(at, i * int64_t(t.cols), x[i], dy[i]);
            at = at.template at<with_relu>(int64_t(step) * t.cols);
#pragma unroll
            for (int i = 0; i < kBatch; ++i) add(x[i], dy[i], g[i], of_rows[i]);
        }
        const F sum = merge_lanes(of_rows, t.lanes);
        if (tile.lane < kBatch) *along_at = sum;
    }
    row += steps * step;
    if (tile.row + steps * step < tile.row_end) {
        F of_rows[kBatch] = {};
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (!in_cols || row + i >= tile.row_end) break;
            Packed<T, V> x, dy;
            load_products<with_relu>(image, place(t, row + i, col), x, dy);
            add(x, dy, gates[row + i - tile.row], of_rows[i]);
        }
        const F sum = merge_lanes(of_rows, t.lanes);
        if (tile.lane < kBatch && row + tile.lane < tile.row_end) along[row + tile.lane] = sum;
    }
    const F sum = merge_groups(of_columns, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end) down[mine] = sum;
}

template <class T, int V, bool with_relu> __global__ void __launch_bounds__(kThreads, 3)
    products(ProductTensors<T, V> of, Tiling t, Rows<const Acc<T>> row_gate, Rows<const Acc<T>> column_gate,
             Acc<T>* along, Acc<T>* down) {
    CBAM_SHARED(shared);
    const Tile tile(t);
    const int64_t image = tile.image * t.rows * t.cols;
    products_tile<with_relu>(of.template at<with_relu>(image), t, tile, row_gate.of(tile.image),
                             column_gate.of(tile.image), along + (tile.image * t.col_tiles + tile.col_tile) * t.rows,
                             down + (tile.image * t.row_tiles + tile.row_tile) * t.cols, shared);
}

// What the gradient of g x through the two maps gives the channel gate before its sigmoid: g times the sum over the
// pixels of x dmean, and of the maxima, g x, times dmax: (parts, C) for each image.
template <class F> struct MapProducts {
    using Sum = F;
    static constexpr bool kFactors = true;
    using Terms = MaxTerms<F, kThreads / kWarp>;
    static size_t scratch_bytes(int channels) { return Terms::bytes(channels); }

    Rows<const F> dmean, dmax, gate, max;
    Rows<const int32_t> argmax;
    Rows<F> sums;
    int C;

    __device__ __forceinline__ MapProducts of(int64_t image) const {
        return {{dmean.of(image), 0},
                {dmax.of(image), 0},
                {gate.of(image), 0},
                {max.of(image), 0},
                {argmax.of(image), 0},
                {sums.of(image), 0},
                C};
    }
    __device__ __forceinline__ F factor(int p) const { return dmean.data[p]; }
    __device__ __forceinline__ Sum start(int) const { return F(0); }
    template <class T, int V>
    __device__ __forceinline__ void add(Sum& sum, const Packed<T, V>& word, const F (&factor)[V], int) const {
        F v[V];
        word.unpack(v);
#pragma unroll
        for (int j = 0; j < V; ++j) sum += v[j] * factor[j];
    }
    template <class T, int V, int N> __device__ __forceinline__ void add(Sum (&sums)[V], const Packed<T, V> (&words)[N],
                                                                         const F (&factor)[N], int) const {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            F v[V];
            words[n].unpack(v);
#pragma unroll
            for (int j = 0; j < V; ++j) sums[j] += v[j] * factor[n];
        }
    }
    template <class Value> __device__ __forceinline__ void finish(Sum&, int, int, int, int, Value) const {}
    __device__ __forceinline__ void begin(Range pixels, Range channels, unsigned char* scratch) const {
        Terms(scratch, channels.last - channels.first)
            .add(argmax.data, dmax.data, max.data, pixels.first, pixels.last, channels.first);
    }
    template <int n, class Read>
    __device__ __forceinline__ void store(Sum sum, int c, Range channels, int part, unsigned char* scratch,
                                          Read) const {
        const Terms terms(scratch, channels.last - channels.first);
        sums.data[int64_t(part) * C + c] = gate.data[c] * sum + terms.sum(c - channels.first);
    }
};

}  // namespace cbam::cuda
