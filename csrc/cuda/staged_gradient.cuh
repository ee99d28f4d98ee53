// The last pass of the backward: dx = (dy s + dmean_c + [c is the pixel's maximum] dmax_c) g
//                                      + dmean_hw + [p is the channel's maximum] dmax_hw.
// Reads dy and writes dx. To the maxima it comes by comparison with their places, so nothing is added atomically.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

// What a pixel, or a channel, has: a factor of what comes in, and what is added to all and to the maximum.
template <class F> struct Side {
    F gate, mean, max;
    int argmax;
};

// Where that is; null for what is absent, which adds nothing.
template <class F> struct Sides {
    Rows<const F> gate, mean, max;
    Rows<const int32_t> argmax;

    __device__ __forceinline__ Side<F> at(int64_t image, int i) const {
        Side<F> side{gate.data ? gate.of(image)[i] : F(0), F(0), F(0), -1};
        if (mean.data) side = {side.gate, mean.of(image)[i], max.of(image)[i], argmax.of(image)[i]};
        return side;
    }
};

template <class F>
__device__ __forceinline__ F gradient(F dy, const Side<F>& pixel, const Side<F>& channel, int p, int c) {
    const F of_gated = dy * pixel.gate + pixel.mean + (pixel.argmax == c ? pixel.max : F(0));
    return of_gated * channel.gate + channel.mean + (channel.argmax == p ? channel.max : F(0));
}

template <class T, int V, bool channels_last> __global__ void __launch_bounds__(kThreads, 3)
    input_gradient(const T* dy, T* dx, Tiling t, Sides<Acc<T>> pixels, Sides<Acc<T>> channels) {
    using F = Acc<T>;
    CBAM_SHARED(shared);
    const Tile tile(t);
    const TileSides<Side<F>> sides(shared, t);
    const Sides<F>&of_rows = channels_last ? pixels : channels, &of_columns = channels_last ? channels : pixels;
    sides.fill(
        tile, [&](int i) { return of_columns.at(tile.image, i); }, [&](int i) { return of_rows.at(tile.image, i); });
    const int col = tile.col + tile.lane * V;
    if (col >= tile.col_end) return;
    const int64_t image = tile.image * t.rows * t.cols;
    Side<F> column[V];
    for (int j = 0; j < V; ++j) column[j] = sides.columns.get(tile.lane * V + j);
    for (int first = tile.row + tile.group * kBatch; first < tile.row_end; first += tile.groups * kBatch) {
        Packed<T, V> of_dy[kBatch] = {};
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
            if (dy && first + i < tile.row_end) of_dy[i].load(dy + image + place(t, first + i, col));
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int row = first + i;
            if (row >= tile.row_end) break;
            const Side<F> side = sides.rows.get(row - tile.row);
            F v[V];
            of_dy[i].unpack(v);
#pragma unroll
            for (int j = 0; j < V; ++j)
                v[j] = channels_last ? gradient(v[j], side, column[j], row, col + j)
                                     : gradient(v[j], column[j], side, col + j, row);
            store<V>(dx + image + place(t, row, col), v);
        }
    }
}

}  // namespace cbam::cuda
