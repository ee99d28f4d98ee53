// The sums of the backward over x: products, of x and dy, along both sides of a tile, and MapProducts, an Operation of
// staged_reduce.cuh: what reaches the channel gate through the two maps.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

// Of a part of at most lanes V columns: put_row(row, sum over its columns of column_gate x dy), put_column(column, sum
// over its rows of row_gate x dy). Behind a ReLU, of the result y, dy is masked, and left so in ``masked``.
template <class T, int V, class PutRow, class PutColumn>
__device__ __forceinline__ void products(const T* x, const T* dy, const T* y, T* masked, const Tiling& t,
                                         const Tile& tile, const Acc<T>* row_gate, const Acc<T>* column_gate,
                                         unsigned char* shared, PutRow put_row, PutColumn put_column) {
    using F = Acc<T>;
    const TileSides<F, V> gates(shared + kMergeBytes<F, V>, t);
    const int col = tile.col + tile.lane * V;
    const bool in_cols = col < tile.col_end;
    F factor[V] = {}, of_columns[V] = {};
    const auto visit = [&](int run, int last) {
        if (run == tile.row && in_cols)
            for (int j = 0; j < V; ++j) factor[j] = gates.columns.get(tile.lane * V + j);
        for (int first = run; first < last; first += tile.groups * kBatch) {
            const int row = first + tile.group * kBatch;
            Packed<T, V> of_x[kBatch] = {}, of_dy[kBatch] = {};
            F of_rows[kBatch] = {};
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                if (!in_cols || row + i >= last) break;
                const int64_t at = place(t, row + i, col);
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
                const F g = row + i < last ? gates.rows.get(row + i - run) : F(0);
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
            if (tile.lane < kBatch && row + tile.lane < last) put_row(row + tile.lane, sum);
        }
    };
    const auto of = [](const F* gate, int i) { return gate ? gate[i] : F(1); };
    gates.each_run(tile, [&](int i) { return of(column_gate, i); }, [&](int i) { return of(row_gate, i); }, visit);
    const F sum = merge_groups(of_columns, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end) put_column(mine, sum);
}

// Shared memory of it.
template <class F, int V> CBAM_ANYWHERE size_t products_bytes(const Tiling& t) {
    return kMergeBytes<F, V> + TileSides<F, V>::bytes(t);
}

// Sums over the pixels of x times the gradient of g x through the two maps.
template <class F> struct MapProducts {
    using Sum = F;
    struct Factor {
        F mean, max;
        int argmax;
    };

    const F *mean, *max;
    const int32_t* argmax;
    F* sums;

    __device__ __forceinline__ Factor factor(int p) const { return {mean[p], max[p], argmax[p]}; }
    __device__ __forceinline__ Sum start(int) const { return F(0); }
    __device__ __forceinline__ void add(Sum& sum, F v, Factor factor, int c, int) const {
        sum += v * (factor.mean + (factor.argmax == c ? factor.max : F(0)));
    }
    __device__ __forceinline__ void store(Sum sum, int c) const { sums[c] = sum; }
};

}  // namespace cbam::cuda
