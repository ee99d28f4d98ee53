// The last pass of the backward: dx = (dy s + dmean_c + [c is the pixel's maximum] dmax_c) g
//                                      + dmean_hw + [p is the channel's maximum] dmax_hw.
// Reads dy and writes dx. The maxima are few, one for each pixel and channel: what dx has there is worked out before
// the rest, since dx may lie where dy is, and written over it, so that nothing is compared for every element and
// nothing is added atomically.
#pragma once

#include "staged_tile.cuh"
#include "words.cuh"

namespace cbam::cuda {

// What a pixel, or a channel, has: a factor of what comes in, and what is added to all and to the maximum. Null for
// what is absent, which adds nothing.
template <class F> struct Side {
    const F *gate, *mean, *max;
    const int32_t* argmax;
};

template <class F> struct Sides {
    Rows<const F> gate, mean, max;
    Rows<const int32_t> argmax;

    __device__ __forceinline__ Side<F> of(int64_t image) const {
        return {gate.of(image), mean.of(image), max.of(image), argmax.of(image)};
    }
};

// In shared memory, of a tile: gate and mean of its rows and of its columns; and of the rows, then the columns, what
// the maximum gets and where it is, and what dx has there.
template <class F, int V> struct GradientSides {
    int rows;
    F *row_gate, *row_mean;
    WordNumbers<F, V> column_gate, column_mean;
    F *max, *fix;
    int* place;  // -1: nowhere

    __host__ __device__ static constexpr size_t numbers(int columns) {
        return WordNumbers<F, V>::bytes(columns) / sizeof(F);
    }
    static size_t bytes(const Tiling& t) {
        return (2 * row_numbers(t) + 2 * numbers(t.tile_cols)) * sizeof(F) +
               (row_numbers(t) + t.tile_cols) * (2 * sizeof(F) + sizeof(int));
    }
    __device__ GradientSides(unsigned char* shared, const Tiling& t)
        : rows(row_numbers(t)),
          row_gate(reinterpret_cast<F*>(shared)),
          row_mean(row_gate + rows),
          column_gate(row_mean + rows, t.tile_cols),
          column_mean(column_gate.data + numbers(t.tile_cols), t.tile_cols),
          max(column_mean.data + numbers(t.tile_cols)),
          fix(max + rows + t.tile_cols),
          place(reinterpret_cast<int*>(fix + rows + t.tile_cols)) {}
    __device__ __forceinline__ void put(int i, const Side<F>& side, int of_side, F& gate, F& mean) const {
        gate = side.gate ? side.gate[of_side] : F(0);
        mean = side.mean ? side.mean[of_side] : F(0);
        max[i] = side.max ? side.max[of_side] : F(0);
        place[i] = side.max ? side.argmax[of_side] : -1;
    }
    // Calls f(i, row, column) for this thread's maxima within the tile, each of which is the maximum of i. One that is
    // the maximum of its row and of its column is the column's.
    template <class Function> __device__ __forceinline__ void each_maximum(const Tile& tile, Function f) const {
        for (int row = tile.row + int(threadIdx.x); row < tile.row_end; row += kThreads) {
            const int col = place[row - tile.row];
            if (col >= tile.col && col < tile.col_end && place[rows + col - tile.col] != row)
                f(row - tile.row, row, col);
        }
        for (int col = tile.col + int(threadIdx.x); col < tile.col_end; col += kThreads) {
            const int row = place[rows + col - tile.col];
            if (row >= tile.row && row < tile.row_end) f(rows + col - tile.col, row, col);
        }
    }
};

// Of a tile; dy, which may be null, and dx begin at its image, whose sides these are.
template <int V, bool channels_last, class T>
__device__ __forceinline__ void gradient_tile(const T* dy, T* dx, const Tiling& t, const Tile& tile,
                                              const Side<Acc<T>>& pixels, const Side<Acc<T>>& channels,
                                              unsigned char* shared) {
    using F = Acc<T>;
    const GradientSides<F, V> sides(shared, t);
    const Side<F>&of_rows = channels_last ? pixels : channels, &of_columns = channels_last ? channels : pixels;
    fill_sides(
        tile,
        [&](int row) {
            const int i = row - tile.row;
            sides.put(i, of_rows, row, sides.row_gate[i], sides.row_mean[i]);
        },
        [&](int col) {
            const int i = col - tile.col;
            sides.put(sides.rows + i, of_columns, col, sides.column_gate.at(i), sides.column_mean.at(i));
        });
    sides.each_maximum(tile, [&](int i, int row, int col) {
        const int r = row - tile.row, c = col - tile.col;
        const F d = dy ? to_acc(dy[place(t, row, col)]) : F(0);
        const F of_row = sides.place[r] == col ? sides.max[r] : F(0);
        const F of_column = sides.place[sides.rows + c] == row ? sides.max[sides.rows + c] : F(0);
        const F gate = sides.column_gate.at(c), mean = sides.column_mean.at(c);
        sides.fix[i] = channels_last ? (d * sides.row_gate[r] + sides.row_mean[r] + of_row) * gate + mean + of_column
                                     : (d * gate + mean + of_column) * sides.row_gate[r] + sides.row_mean[r] + of_row;
    });
    __syncthreads();

    const int col = tile.col + tile.lane * V;
    F gate[V] = {}, mean[V] = {};
    if (col < tile.col_end) sides.column_gate.load(tile.lane, gate), sides.column_mean.load(tile.lane, mean);
    const auto finish = [&](int64_t at, const Packed<T, V>& word, F row_gate, F row_mean) {
        F v[V];
        word.unpack(v);
#pragma unroll
        for (int j = 0; j < V; ++j)
            v[j] = channels_last ? (v[j] * row_gate + row_mean) * gate[j] + mean[j]
                                 : (v[j] * gate[j] + mean[j]) * row_gate + row_mean;
        store<V>(dx + at, v);
    };
    int row = col < tile.col_end ? tile.row + tile.group * kBatch : tile.row_end;
    const int step = tile.groups * kBatch;
    int64_t at = place(t, row, col);
#pragma unroll 1
    for (; row + kBatch <= tile.row_end; row += step, at += int64_t(step) * t.cols) {
        Packed<T, V> words[kBatch] = {};
        F row_gate[kBatch], row_mean[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
            if (dy) words[i].load(dy + at + i * int64_t(t.cols));
        load_numbers(sides.row_gate + row - tile.row, row_gate);
        load_numbers(sides.row_mean + row - tile.row, row_mean);
#pragma unroll
        for (int i = 0; i < kBatch; ++i) finish(at + i * int64_t(t.cols), words[i], row_gate[i], row_mean[i]);
    }
#pragma unroll 1
    for (; row < tile.row_end; ++row, at += t.cols) {  // of the one group that has fewer
        Packed<T, V> word = {};
        if (dy) word.load(dy + at);
        finish(at, word, sides.row_gate[row - tile.row], sides.row_mean[row - tile.row]);
    }
    __syncthreads();
    sides.each_maximum(tile, [&](int i, int row, int col) { dx[place(t, row, col)] = from_acc<T>(sides.fix[i]); });
}

template <class T, int V, bool channels_last> __global__ void __launch_bounds__(kThreads, 3)
    input_gradient(const T* dy, T* dx, Tiling t, Sides<Acc<T>> pixels, Sides<Acc<T>> channels) {
    CBAM_SHARED(shared);
    const Tile tile(t);
    const int64_t image = tile.image * t.rows * t.cols;
    gradient_tile<V, channels_last>(dy ? dy + image : nullptr, dx + image, t, tile, pixels.of(tile.image),
                                    channels.of(tile.image), shared);
}

}  // namespace cbam::cuda
