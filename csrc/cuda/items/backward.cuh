// The items of the backward that read x or dy. A block computes one item on a strip: all channels of some pixels. Its
// threads split the strip as in tile.cuh, the convolution as in convolution.cuh.
//
// products_item: ds = sum over channels of g x dy; dz = s (1 - s) ds; partial sums over pixels of s x dy.
// map_gradients_item: dmaps, the transposed convolution of dz; partial sums of g dg through the maps.
// input_item: dx (input_gradient.cuh).
// The MLP (mlp_backward.cuh) comes before input_item. An item needs only the previous kind's items of its image.
//
// Reads: products_item x, dy, y with a ReLU, gates; map_gradients_item dz, ws and, with a channel gate, x, g, max_c and
// argmax_c; input_item dy, gates, dmaps, dpools, argmax.
// Writes: products_item dz or ds, dg_sums, with a ReLU masked dy; map_gradients_item dmaps, map_sums; input_item dx.
// Shared memory: item_bytes (bytes.h).
#pragma once

#include "../common/max_terms.cuh"
#include "convolution.cuh"
#include "even_ties.cuh"
#include "image.cuh"
#include "input_gradient.cuh"
#include "products.cuh"
#include "reduce.cuh"
#include "work.h"

namespace cbam::cuda {

// dy after the ReLU's backward.
template <class T> __device__ __forceinline__ T* masked_dy(const Problem& p) { return static_cast<T*>(p.dresidual); }

template <class T, int V, bool channels_last>
__device__ __forceinline__ void products_item(const Backward<Acc<T>>& a, int64_t n, int index, unsigned char* shared) {
    using F = Acc<T>;
    const Layout& p = a.p;
    const Tile tile(a.strip, index);
    const Image<F> image{p, n};
    const F *const g = image.g(), *const s = image.spatial_gate();
    F* const dz = p.spatial ? a.dz + n * p.HW() : nullptr;
    F* const parts = p.channel ? a.dg_sums + (n * a.strip.tiles() + index) * p.C : nullptr;
    const auto put_pixel = [&](int q, F sum) {
        if (dz) dz[q] = a.products_alone ? sum : through_gate(p.switches.hard_spatial, s[q], sum);
    };
    const auto put_channel = [&](int c, F sum) {
        if (parts) parts[c] = sum;
    };
    const auto of_part = [&](const Tile& part, auto put_row, auto put_column) {
        const T *const x = image.of((const T*)p.x), *const dy = image.of((const T*)p.dy);
        const F *const row_gate = channels_last ? s : g, *const column_gate = channels_last ? g : s;
        if (p.relu)
            products(ProductTensors<T, V, true>{x, dy, image.of((const T*)p.y), image.of(masked_dy<T>(p))}, a.strip,
                     part, row_gate, column_gate, shared, put_row, put_column);
        else
            products(ProductTensors<T, V, false>{x, dy, nullptr, nullptr}, a.strip, part, row_gate, column_gate, shared,
                     put_row, put_column);
    };
    if constexpr (channels_last) {
        // Adds the parts of a row. The same thread adds each time, so no barrier is needed.
        F* const of_rows = reinterpret_cast<F*>(shared + products_bytes<F, V>(a.strip));
        tile.each_part<V>([&](const Tile& part) {
            const auto put_row = [&](int q, F sum) {
                of_rows[q - tile.row] = part.col == 0 ? sum : of_rows[q - tile.row] + sum;
            };
            of_part(part, put_row, put_channel);
        });
        // merge_groups has a barrier after the last put_row.
        for (int q = tile.row + threadIdx.x; q < tile.row_end; q += kThreads) put_pixel(q, of_rows[q - tile.row]);
    } else {
        of_part(tile, put_channel, put_pixel);
    }
}

template <class T, int V, bool channels_last, bool even>
__device__ __forceinline__ void map_gradients_item(const Backward<Acc<T>>& a, int64_t n, int index,
                                                   unsigned char* shared) {
    using F = Acc<T>;
    const Layout& p = a.p;
    const Tile tile(a.strip, index);
    const Image<F> image{p, n};
    const int64_t HW = p.HW();
    F* const dmaps = a.dmaps + n * 2 * HW;
    const F* const dz[1] = {a.dz ? a.dz + n * HW : nullptr};
    const auto visit = [](Pair<F>& sum, const Pair<F>& weight, const F(&v)[1]) {
        sum.mean += weight.mean * v[0];
        sum.max += weight.max * v[0];
    };
    const auto finish = [&](int q, const Pair<F>& sum) {
        dmaps[q] = sum.mean / F(p.C);
        dmaps[HW + q] = even ? sum.max / F(image.argmax_c()[q]) : sum.max;
    };
    convolve<Pair<F>, true>(dz, p, channels_last ? tile.row : tile.col, channels_last ? tile.row_end : tile.col_end,
                            reinterpret_cast<F*>(shared), visit, finish);
    if (!p.channel) return;
    if constexpr (even) return even_map_products<T, V, channels_last>(a, image, tile, index, shared);
    const T* const x = image.of((const T*)p.x);
    F* const parts = a.map_sums + (n * a.strip.tiles() + index) * p.C;
    const int first = channels_last ? tile.row : tile.col, last = channels_last ? tile.row_end : tile.col_end;
    __syncthreads();  // dmaps of all pixels is written
    if (threadIdx.x < kWarp) {
        for (int c = threadIdx.x; c < p.C; c += kWarp) parts[c] = 0;
        __syncwarp();
        const F *const dmax = dmaps + HW, *const max = image.max_c();
        const int32_t* const argmax = image.argmax_c();
        sum_by_key(
            first, last, kWarp, parts, [&](int q) { return argmax[q]; }, [&](int q) { return dmax[q] * max[q]; });
    }
    const MapProducts<F> sums{dmaps, image.g(), parts};
    if constexpr (channels_last)
        tile.each_part<V>([&](const Tile& part) { reduce_across<T, V>(x, a.strip, part, sums, shared); });
    else reduce_along<T, V>(x, a.strip, tile, sums, shared);
}

template <class T, int V, bool channels_last, bool even>
__device__ __forceinline__ void input_item(const Backward<Acc<T>>& a, int64_t n, int index, unsigned char* shared) {
    using F = Acc<T>;
    const Layout& p = a.p;
    const Tile tile(a.strip, index);
    const Image<F> image{p, n};
    const T* const dy = p.dy && p.relu ? masked_dy<T>(p) : (const T*)p.dy;
    if constexpr (even) return even_input_item<T, V, channels_last>(a, n, index, dy);
    const F *const dmaps = a.dmaps_of(n), *const dpools = a.dpools_of(n);
    const F* const s = image.spatial_gate();
    const Sides<F> pixels{dy ? s : nullptr, dmaps, dmaps ? int(p.HW()) : 0, image.argmax_c()};
    // Without dy and spatial gate the factor is 1, because 0 times an infinite g is NaN.
    const Sides<F> channels{dy || p.spatial ? image.g() : nullptr, dpools, p.switches.no_max || !dpools ? 0 : int(p.C),
                            image.argmax_hw()};
    tile.each_part<V>([&](const Tile& part) {
        input_gradient<T, V, channels_last>(image.of(dy), image.of((T*)p.dx), a.strip, part, pixels, channels, shared);
    });
}

}  // namespace cbam::cuda
