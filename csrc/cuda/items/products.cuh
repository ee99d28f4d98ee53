// Sums of the backward that read x. products: x dy along the rows and down the columns of a tile. MapProducts, an
// Operation of reduce.cuh: the gradient of the channel gate through the mean map.
#pragma once

#include "tile.cuh"

namespace cbam::cuda {

// Pointers to a thread's elements. With a ReLU, dy is masked by y and written to ``masked``.
template <class T, int V, bool with_relu> struct ProductTensors {
    const T *x, *dy, *y;
    T* masked;

    __device__ __forceinline__ ProductTensors at(int64_t i) const {
        return {x + i, dy + i, with_relu ? y + i : nullptr, with_relu ? masked + i : nullptr};
    }
    __device__ __forceinline__ void load(int64_t i, Packed<T, V>& of_x, Packed<T, V>& of_dy) const {
        of_x.load(x + i);
        of_dy.load(dy + i);
        if constexpr (with_relu) {
            Packed<T, V> result;
            result.load(y + i);
            mask_by(result, of_dy);
            of_dy.store(masked + i);
        }
    }
};

// For a part of at most lanes V columns, calls put_row(row, sum over columns of column_gate x dy) and
// put_column(column, sum over rows of row_gate x dy).
template <class T, int V, bool with_relu, class PutRow, class PutColumn>
__device__ __forceinline__ void products(const ProductTensors<T, V, with_relu>& image, const Tiling& t,
                                         const Tile& tile, const Acc<T>* row_gate, const Acc<T>* column_gate,
                                         unsigned char* shared, PutRow put_row, PutColumn put_column) {
    using F = Acc<T>;
    const TileSides<F, V> gates(shared + kMergeBytes<F, V>, t);
    const int col = tile.col + tile.lane * V, step = tile.groups * kBatch;
    const bool in_cols = col < tile.col_end;
    F factor[V] = {}, of_columns[V] = {};
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
    const auto visit = [&](int run, int last) {
        if (run == tile.row && in_cols) gates.columns.load(tile.lane, factor);
        int row = run + tile.group * kBatch;
        auto at = image.at(offset(t, row, col));
        const F* gates_at = gates.rows + row - run;
#pragma unroll 1
        for (int left = (last - run) / step; left > 0; --left, row += step, gates_at += step) {
            F of_rows[kBatch] = {};
            if (in_cols) {
                Packed<T, V> x[kBatch], dy[kBatch];
                F g[kBatch];
                load_numbers(gates_at, g);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) at.load(i * int64_t(t.cols), x[i], dy[i]);
                at = at.at(int64_t(step) * t.cols);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) add(x[i], dy[i], g[i], of_rows[i]);
            }
            const F sum = merge_lanes(of_rows, t.lanes);
            if (tile.lane < kBatch) put_row(row + tile.lane, sum);
        }
        if ((last - run) % step == 0) return;
        F of_rows[kBatch] = {};
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            if (!in_cols || row + i >= last) break;
            Packed<T, V> x, dy;
            at.load(i * int64_t(t.cols), x, dy);
            add(x, dy, gates_at[i], of_rows[i]);
        }
        const F sum = merge_lanes(of_rows, t.lanes);
        if (tile.lane < kBatch && row + tile.lane < last) put_row(row + tile.lane, sum);
    };
    each_run(
        tile, [&](int row, int i) { gates.rows[i] = row_gate ? row_gate[row] : F(1); },
        [&](int col, int i) { gates.columns.at(i) = column_gate ? column_gate[col] : F(1); }, visit);
    const F sum = merge_groups(of_columns, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end) put_column(mine, sum);
}

// Shared memory of products, in bytes.
template <class F, int V> CBAM_ANYWHERE size_t products_bytes(const Tiling& t) {
    return kMergeBytes<F, V> + TileSides<F, V>::bytes(t);
}

// Adds g times the sum over pixels of x dmean to ``sums``.
template <class F> struct MapProducts {
    using Sum = F;
    static constexpr bool kFactors = true;

    const F *dmean, *gate;
    F* sums;

    __device__ __forceinline__ F factor(int p) const { return dmean[p]; }
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
    template <int n, class Read> __device__ __forceinline__ void store(Sum sum, int c, Read) const {
        sums[c] += gate[c] * sum;
    }
};

}  // namespace cbam::cuda
