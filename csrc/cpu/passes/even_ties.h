// The backward of maxima with even ties: the gradient is split evenly among tied elements, as for amax. The tied
// elements are found by comparing with the maximum again: three more reads of x, from the cache if an image fits. If no
// element equals the maximum, which is then NaN, the gradient is 0 / 0.
#pragma once

#include "../workspace.h"

namespace {

// An image as a matrix, as in scale_and_dots.h, and the maxima of x over its pixels and of g x over its channels.
// Channels are the columns if channels_last, else the rows.
template <class T, bool channels_last> struct Maxima {
    using F = Acc<T>;
    using V = Vec<F>;
    const T* x;
    int64_t cols;
    const F *g, *max_hw, *max_c;

    // For absent maxima, whose gradients are 0, any numbers work.
    CBAM_PASS Maxima(const Problem& p, int64_t image, const Scratch<F>& scratch)
        : x((const T*)p.x + image * p.C * p.HW()) {
        const Saved<F> v(p, image);
        cols = channels_last ? p.C : p.HW();
        g = Gates(p, image, scratch).g;
        max_hw = v.max_hw ? v.max_hw : g, max_c = v.max_c ? v.max_c : scratch.ones;
    }

    // The number of elements of a tile equal to the maximum of each channel, and of each pixel.
    CBAM_PASS void count(const Tile<F>& tile) const {
        fill(tile.down + tile.c0, tile.c1 - tile.c0, F(0));
        for (int64_t r = tile.r0; r < tile.r1; ++r) {
            V along = {};
            each_vector<F>(tile.c1 - tile.c0, [&](int64_t i, auto lanes) {
                const int64_t c = tile.c0 + i;
                const V channel = is_channel_max(r, c, lanes), pixel = is_pixel_max(r, c, lanes);
                along += channels_last ? pixel : channel;
                store(tile.down + c, load(tile.down + c, lanes) + (channels_last ? channel : pixel), lanes);
            });
            tile.along[r] = sum_lanes<F>(along);
        }
    }

    // For a tile, each channel's sum of the gradients of the pixels whose maximum it equals.
    CBAM_PASS void sum_shares(const F* share, const Tile<F>& tile) const {
        if constexpr (channels_last) fill(tile.down + tile.c0, tile.c1 - tile.c0, F(0));
        for (int64_t r = tile.r0; r < tile.r1; ++r) {
            V along = {};
            each_vector<F>(tile.c1 - tile.c0, [&](int64_t i, auto lanes) {
                const int64_t c = tile.c0 + i;
                const V term = is_pixel_max(r, c, lanes) * of_pixel(share, r, c, lanes);
                if constexpr (channels_last) store(tile.down + c, load(tile.down + c, lanes) + term, lanes);
                else along += term;
            });
            if constexpr (!channels_last) tile.along[r] = sum_lanes<F>(along);
        }
    }

    // For some rows, dx = (z s + t + share_c at a pixel's maximum) scale + b + share_hw at a channel's maximum; z null:
    // zeros. s, t and share_c are per pixel; scale, b and share_hw are per channel. dx may be z.
    CBAM_PASS void input_gradient(const T* z, Range rows, const F* s, const F* t, const F* share_c, const F* scale,
                                  const F* b, const F* share_hw, T* dx) const {
        for (int64_t r = rows.first; r < rows.last; ++r)
            each_vector<F>(cols, [&](int64_t c, auto lanes) {
                V inner = of_pixel(t, r, c, lanes) + is_pixel_max(r, c, lanes) * of_pixel(share_c, r, c, lanes);
                if (z) inner += load(z + r * cols + c, lanes) * of_pixel(s, r, c, lanes);
                const V outer =
                    of_channel(b, r, c, lanes) + is_channel_max(r, c, lanes) * of_channel(share_hw, r, c, lanes);
                store(dx + r * cols + c, inner * of_channel(scale, r, c, lanes) + outer, lanes);
            });
    }

private:
    // The elements of a vector over channels or pixels for columns from c of row r.
    template <class Lanes> static V of_channel(const F* v, int64_t r, int64_t c, Lanes lanes) {
        if constexpr (channels_last) return load(v + c, lanes);
        else return broadcast<V>(v[r]);
    }
    template <class Lanes> static V of_pixel(const F* v, int64_t r, int64_t c, Lanes lanes) {
        if constexpr (channels_last) return broadcast<V>(v[r]);
        else return load(v + c, lanes);
    }

    // 1 where the element equals the maximum of its channel, or of its pixel, else 0.
    template <class Lanes> V is_channel_max(int64_t r, int64_t c, Lanes lanes) const {
        return one_where_equal(load(x + r * cols + c, lanes), of_channel(max_hw, r, c, lanes), lanes);
    }
    template <class Lanes> V is_pixel_max(int64_t r, int64_t c, Lanes lanes) const {
        const V value = load(x + r * cols + c, lanes) * of_channel(g, r, c, lanes);
        return one_where_equal(value, of_pixel(max_c, r, c, lanes), lanes);
    }
    template <class Lanes> static V one_where_equal(V a, V b, Lanes lanes) {
        return or_else<F>(a == b ? broadcast<V>(F(1)) : V{}, lanes, V{});
    }
};

}  // namespace
