// dx = (dy s + dmean_c + [c is the pixel's maximum] dmax_c) g + dmean_hw + [p is the channel's maximum] dmax_hw.
// The maxima are few, one for each pixel and channel: what dx has there is written over the rest, so that nothing is
// compared for every element and nothing is added atomically.
#pragma once

#include "tile.cuh"

namespace cbam::cuda {

// What pixels, or channels, have: a factor of what comes in, and what is added to all and to the maximum. A factor that
// is null is ``otherwise``; where mean or max is null nothing is added.
template <class F> struct Sides {
    const F* gate;
    F otherwise;
    const F *mean, *max;
    const int32_t* argmax;
};

// In shared memory: gate and mean of a run of rows and of a part's columns; and of the rows, then the columns, what the
// maximum gets and where it is.
template <class F, int V> struct GradientSides {
    F* base;
    int rows, columns;

    CBAM_ANYWHERE static constexpr int numbers(int columns) { return WordNumbers<F, V>::bytes(columns) / sizeof(F); }
    CBAM_ANYWHERE static size_t bytes(const Tiling& t) {
        const int rows = staged_rows(t), columns = t.lanes * V;
        return (2 * rows + 2 * numbers(columns)) * sizeof(F) + (rows + columns) * (sizeof(F) + sizeof(int));
    }
    __device__ GradientSides(unsigned char* shared, const Tiling& t)
        : base(reinterpret_cast<F*>(shared)), rows(staged_rows(t)), columns(t.lanes * V) {}
    __device__ __forceinline__ F* row_gate() const { return base; }
    __device__ __forceinline__ F* row_mean() const { return base + rows; }
    __device__ __forceinline__ WordNumbers<F, V> column_gate() const { return {base + 2 * rows, columns}; }
    __device__ __forceinline__ WordNumbers<F, V> column_mean() const {
        return {base + 2 * rows + numbers(columns), columns};
    }
    __device__ __forceinline__ F& max(int i) const { return base[2 * rows + 2 * numbers(columns) + i]; }
    // -1: nowhere.
    __device__ __forceinline__ int& place(int i) const {
        return reinterpret_cast<int*>(base + 3 * rows + 2 * numbers(columns) + columns)[i];
    }
    __device__ __forceinline__ void put(int i, const Sides<F>& sides, int of_side, F& gate, F& mean) const {
        gate = sides.gate ? sides.gate[of_side] : sides.otherwise;
        mean = sides.mean ? sides.mean[of_side] : F(0);
        max(i) = sides.max ? sides.max[of_side] : F(0);
        place(i) = sides.max ? sides.argmax[of_side] : -1;
    }
    // Calls f(row, column) for this thread's maxima in rows run ... last - 1 of the part. One that is the maximum of
    // its row and of its column is the column's.
    template <class Function>
    __device__ __forceinline__ void each_maximum(const Tile& tile, int run, int last, Function f) const {
#pragma unroll 1
        for (int row = run + int(threadIdx.x); row < last; row += kThreads) {
            const int col = place(row - run);
            if (col >= tile.col && col < tile.col_end && place(rows + col - tile.col) != row) f(row, col);
        }
#pragma unroll 1
        for (int col = tile.col + int(threadIdx.x); col < tile.col_end; col += kThreads) {
            const int row = place(rows + col - tile.col);
            if (row >= run && row < last) f(row, col);
        }
    }
};

// Of a part of at most lanes V columns; dy, or zeros, and dx begin at its image, whose sides these are.
template <class T, int V, bool channels_last, bool with_dy>
__device__ __forceinline__ void input_gradient(const T* dy, T* dx, const Tiling& t, const Tile& tile,
                                               const Sides<Acc<T>>& pixels, const Sides<Acc<T>>& channels,
                                               unsigned char* shared) {
    using F = Acc<T>;
    const GradientSides<F, V> sides(shared, t);
    const Sides<F>&of_rows = channels_last ? pixels : channels, &of_columns = channels_last ? channels : pixels;
    const int col = tile.col + tile.lane * V, step = tile.groups * kBatch;
    const auto visit = [&](int run, int last) {
        F gate[V] = {}, mean[V] = {};
        if (col < tile.col_end) sides.column_gate().load(tile.lane, gate), sides.column_mean().load(tile.lane, mean);
        const auto finish = [&](int64_t at, const Packed<T, V>& word, F row_gate, F row_mean) {
            F v[V];
            word.unpack(v);
#pragma unroll
            for (int j = 0; j < V; ++j)
                v[j] = channels_last ? (v[j] * row_gate + row_mean) * gate[j] + mean[j]
                                     : (v[j] * gate[j] + mean[j]) * row_gate + row_mean;
            store<V>(dx + at, v);
        };
        int row = col < tile.col_end ? run + tile.group * kBatch : last;
        int64_t at = place(t, row, col);
#pragma unroll 1
        for (; row + kBatch <= last; row += step, at += int64_t(step) * t.cols) {
            Packed<T, V> words[kBatch] = {};
            F row_gate[kBatch], row_mean[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (with_dy) words[i].load(dy + at + i * int64_t(t.cols));
            load_numbers(sides.row_gate() + row - run, row_gate);
            load_numbers(sides.row_mean() + row - run, row_mean);
#pragma unroll
            for (int i = 0; i < kBatch; ++i) finish(at + i * int64_t(t.cols), words[i], row_gate[i], row_mean[i]);
        }
#pragma unroll 1
        for (; row < last; ++row, at += t.cols) {  // of the one group that has fewer
            Packed<T, V> word = {};
            if (with_dy) word.load(dy + at);
            finish(at, word, sides.row_gate()[row - run], sides.row_mean()[row - run]);
        }
        __syncthreads();
        sides.each_maximum(tile, run, last, [&](int row, int col) {
            const int r = row - run, c = col - tile.col;
            const F d = with_dy ? to_acc(dy[place(t, row, col)]) : F(0);
            const F of_row = sides.place(r) == col ? sides.max(r) : F(0);
            const F of_column = sides.place(sides.rows + c) == row ? sides.max(sides.rows + c) : F(0);
            const F gate = sides.column_gate().at(c), mean = sides.column_mean().at(c);
            dx[place(t, row, col)] = from_acc<T>(
                channels_last ? (d * sides.row_gate()[r] + sides.row_mean()[r] + of_row) * gate + mean + of_column
                              : (d * gate + mean + of_column) * sides.row_gate()[r] + sides.row_mean()[r] + of_row);
        });
    };
    each_run(
        tile, [&](int row, int i) { sides.put(i, of_rows, row, sides.row_gate()[i], sides.row_mean()[i]); },
        [&](int col, int i) {
            sides.put(sides.rows + i, of_columns, col, sides.column_gate().at(i), sides.column_mean().at(i));
        },
        visit);
}

}  // namespace cbam::cuda
