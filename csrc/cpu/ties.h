// The backward of maxima whose gradient is shared evenly by all elements that reach them, as that of amax is, in place
// of the first one alone. Which elements those are is found by comparing with the maximum again: three more reads of x,
// from cache where an image fits. Where none equals the maximum, which is NaN then, the shares become 0 / 0.
#pragma once

#include "matrix.h"

namespace {

// An image, seen as in matrix.h, and the maxima of x over its pixels and of g x over its channels. Channels are the
// columns if channels_last, else the rows.
template <class T, bool channels_last> struct Maxima {
    using F = Acc<T>;
    using V = Vec<F>;
    const T* x;
    int64_t rows, cols;
    const F *g, *max_hw, *max_c;

    // How many elements reach the maximum of each channel, and of each pixel.
    void count(F* of_channels, F* of_pixels) const {
        F *of_rows = channels_last ? of_pixels : of_channels, *of_cols = channels_last ? of_channels : of_pixels;
        fill(of_cols, cols, F(0));
        for (int64_t r = 0; r < rows; ++r) {
            V along = {};
            each_vector<F>(cols, [&](int64_t c, auto lanes) {
                const V channel = is_channel_max(r, c, lanes), pixel = is_pixel_max(r, c, lanes);
                along += channels_last ? pixel : channel;
                store(of_cols + c, load(of_cols + c, lanes) + (channels_last ? channel : pixel), lanes);
            });
            of_rows[r] = sum_lanes<F>(along);
        }
    }

    // sum[channel] += share of every pixel whose maximum it reaches.
    void add_shares(const F* share, double* sum) const {
        each_part(cols, kChunk, [&](int64_t c0, int64_t c1) {
            each_part(rows, kBlock, [&](int64_t r0, int64_t r1) {
                F down[kChunk] = {};
                for (int64_t r = r0; r < r1; ++r) {
                    V along = {};
                    each_vector<F>(c1 - c0, [&](int64_t i, auto lanes) {
                        const V term = is_pixel_max(r, c0 + i, lanes) * of_pixel(share, r, c0 + i, lanes);
                        if constexpr (channels_last) store(down + i, load(down + i, lanes) + term, lanes);
                        else along += term;
                    });
                    if constexpr (!channels_last) sum[r] += sum_lanes<F>(along);
                }
                for (int64_t c = c0; channels_last && c < c1; ++c) sum[c] += down[c - c0];
            });
        });
    }

    // dx = (z s + t + share_c where a pixel's maximum) g + b + share_hw where a channel's maximum; z null: zeros. s, t
    // and share_c belong to pixels, g, b and share_hw to channels. dx may be z.
    void input_gradient(const T* z, const F* s, const F* t, const F* share_c, const F* b, const F* share_hw,
                        T* dx) const {
        for (int64_t r = 0; r < rows; ++r)
            each_vector<F>(cols, [&](int64_t c, auto lanes) {
                V inner = of_pixel(t, r, c, lanes) + is_pixel_max(r, c, lanes) * of_pixel(share_c, r, c, lanes);
                if (z) inner += load(z + r * cols + c, lanes) * of_pixel(s, r, c, lanes);
                const V outer =
                    of_channel(b, r, c, lanes) + is_channel_max(r, c, lanes) * of_channel(share_hw, r, c, lanes);
                store(dx + r * cols + c, inner * of_channel(g, r, c, lanes) + outer, lanes);
            });
    }

private:
    // Of a vector of channels, or of pixels, what belongs to columns c and on of row r.
    template <class Lanes> static V of_channel(const F* v, int64_t r, int64_t c, Lanes lanes) {
        if constexpr (channels_last) return load(v + c, lanes);
        else return broadcast<V>(v[r]);
    }
    template <class Lanes> static V of_pixel(const F* v, int64_t r, int64_t c, Lanes lanes) {
        if constexpr (channels_last) return broadcast<V>(v[r]);
        else return load(v + c, lanes);
    }

    // There, 1 where the element is the maximum of its channel, or of its pixel, else 0.
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
