// dx = (dy s + dmean_c + [c is the pixel's maximum] dmax_c) g + dmean_hw + [p is the channel's maximum] dmax_hw.
// To the maxima it comes by comparison with their places, so nothing is added atomically.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

// What a pixel, or a channel, has: a factor of what comes in, and what is added to all and to the maximum.
template <class F> struct Side {
    F gate, mean, max;
    int argmax;
};

// Where that is; null for what is absent, which adds nothing. An absent gate is ``otherwise``.
template <class F> struct Sides {
    const F* gate;
    F otherwise;
    const F *mean, *max;
    const int32_t* argmax;

    __device__ __forceinline__ Side<F> at(int i) const {
        Side<F> side{gate ? gate[i] : otherwise, F(0), F(0), -1};
        if (mean) side.mean = mean[i];
        if (max) side.max = max[i], side.argmax = argmax[i];
        return side;
    }
};

template <class F>
__device__ __forceinline__ F gradient(F dy, const Side<F>& pixel, const Side<F>& channel, int p, int c) {
    const F of_gated = dy * pixel.gate + pixel.mean + (pixel.argmax == c ? pixel.max : F(0));
    return of_gated * channel.gate + channel.mean + (channel.argmax == p ? channel.max : F(0));
}

// Of a part of at most lanes V columns; dy may be null, for zeros.
template <class T, int V, bool channels_last>
__device__ __forceinline__ void input_gradient(const T* dy, T* dx, const Tiling& t, const Tile& tile,
                                               const Sides<Acc<T>>& pixels, const Sides<Acc<T>>& channels,
                                               unsigned char* shared) {
    using F = Acc<T>;
    const TileSides<Side<F>, V> sides(shared, t);
    const Sides<F>&of_rows = channels_last ? pixels : channels, &of_columns = channels_last ? channels : pixels;
    const int col = tile.col + tile.lane * V;
    Side<F> column[V];
    const auto visit = [&](int run, int last) {
        if (col >= tile.col_end) return;
        if (run == tile.row)
            for (int j = 0; j < V; ++j) column[j] = sides.columns.get(tile.lane * V + j);
        for (int first = run + tile.group * kBatch; first < last; first += tile.groups * kBatch) {
            Packed<T, V> of_dy[kBatch] = {};
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (dy && first + i < last) of_dy[i].load(dy + place(t, first + i, col));
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                const int row = first + i;
                if (row >= last) break;
                const Side<F> side = sides.rows.get(row - run);
                F v[V];
                of_dy[i].unpack(v);
#pragma unroll
                for (int j = 0; j < V; ++j)
                    v[j] = channels_last ? gradient(v[j], side, column[j], row, col + j)
                                         : gradient(v[j], column[j], side, col + j, row);
                store<V>(dx + place(t, row, col), v);
            }
        }
    };
    sides.each_run(tile, [&](int i) { return of_columns.at(i); }, [&](int i) { return of_rows.at(i); }, visit);
}

}  // namespace cbam::cuda
