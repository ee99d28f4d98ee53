// The items of the forward that read x. A block computes one item. Its threads split the tile as in tile.cuh, the
// convolution as in convolution.cuh.
//
// pool_item: partial sum, maximum and argmax of x over the pixels of a tile, for each of its channels.
// maps_item: mean, maximum and argmax of g x over the channels. Its tile is a strip: all channels of some pixels.
// apply_item, the same strip: s = sigmoid(convolution of the maps), y = relu(x g s + residual).
// The MLP (mlp_forward.cuh) comes before maps_item. An item needs only the previous kind's items of its image.
//
// Reads: pool_item x; maps_item x, g; apply_item x, g, residual, the maps, ws, bs.
// Writes: pool_item the partial pools; maps_item mean_c, max_c, argmax_c; apply_item s, y.
// Shared memory: item_bytes (bytes.h).
#pragma once

#include "apply.cuh"
#include "convolution.cuh"
#include "even_ties.cuh"
#include "image.cuh"
#include "pool.cuh"
#include "reduce.cuh"
#include "work.h"

namespace cbam::cuda {

// Result of the channel pool besides the sum: none, maximum and argmax, or maximum and number of ties.
enum class Maxima { none, argmax, ties };

template <class T, int V, bool channels_last, Maxima maxima>
__device__ __forceinline__ void pool_item(const Forward<Acc<T>>& a, int64_t n, int index, unsigned char* shared) {
    using F = Acc<T>;
    if constexpr (maxima == Maxima::ties) return even_pool_item<T, V, channels_last>(a, n, index, shared);
    const Tile tile(a.pool, index);
    const int64_t at = (n * a.parts() + (channels_last ? tile.row_tile : tile.col_tile)) * a.p.C;
    const T* const x = Image<F>{a.p, n}.of((const T*)a.p.x);
    const auto reduce = [&](const auto& pool) {
        if constexpr (channels_last) reduce_across<T, V>(x, a.pool, tile, pool, shared);
        else reduce_along<T, V>(x, a.pool, tile, pool, shared);
    };
    if constexpr (maxima == Maxima::none) return reduce(SumPool<F>{a.total + at});
    const bool wanted = a.max;  // the dataflow kernel serves both cases
    reduce(
        Pool<F, false>{nullptr, a.total + at, wanted ? a.max + at : nullptr, wanted ? a.argmax + at : nullptr, F(1)});
}

template <class T, int V, bool channels_last, bool even>
__device__ __forceinline__ void maps_item(const Forward<Acc<T>>& a, int64_t n, int index, unsigned char* shared) {
    using F = Acc<T>;
    if constexpr (even) return even_maps_item<T, V, channels_last>(a, n, index, shared);
    const Tile tile(a.strip, index);
    const Image<F> image{a.p, n};
    const Pool<F, true> pool{image.g(), image.mean_c(), image.max_c(), image.argmax_c(), F(a.p.C)};
    const T* const x = image.of((const T*)a.p.x);
    if constexpr (channels_last) reduce_along<T, V>(x, a.strip, tile, pool, shared);
    else reduce_across<T, V>(x, a.strip, tile, pool, shared);
}

// s = sigmoid(convolution of both maps + bs) of the pixels in [first, last). Without y, s is the sigmoid's input.
template <class F>
__device__ __forceinline__ void spatial_gate(const Layout& p, const Image<F>& image, int first, int last, F* shared) {
    F* const s = image.s();
    const F* const maps[2] = {image.mean_c(), image.max_c()};
    const F bias = p.bs ? *static_cast<const F*>(p.bs) : F(0);
    const auto visit = [](F& sum, const Pair<F>& weight, const F(&v)[2]) {
        sum += weight.mean * v[0] + weight.max * v[1];
    };
    const auto finish = [&](int q, F sum) { s[q] = p.y ? gate_of(p.switches.hard_spatial, sum + bias) : sum + bias; };
    convolve<F, false>(maps, p, first, last, shared, visit, finish);
}

template <class T, int V, bool channels_last>
__device__ __forceinline__ void apply_item(const Forward<Acc<T>>& a, int64_t n, int index, unsigned char* shared) {
    using F = Acc<T>;
    const Layout& p = a.p;
    const Tile tile(a.strip, index);
    const Image<F> image{p, n};
    if (a.gates && p.spatial)
        spatial_gate(p, image, channels_last ? tile.row : tile.col, channels_last ? tile.row_end : tile.col_end,
                     reinterpret_cast<F*>(shared));
    if (!p.y) return;
    const F *const g = image.g(), *const s = image.spatial_gate();
    tile.each_part<V>([&](const Tile& part) {
        scale<T, V>(image.of((const T*)p.x), image.of((const T*)p.residual), image.of((T*)p.y), a.strip, part,
                    channels_last ? s : g, channels_last ? g : s, p.relu, shared);
    });
}

}  // namespace cbam::cuda
