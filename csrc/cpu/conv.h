// The k x k convolution of the spatial gate over two small maps, and its two gradients.
//
// A map of H x W is kept with a border of p = k / 2 zeros on every side, as rows of Wp = W + 2p. An output at
// (h, w) is then number i = h Wp + w, and the input it meets at offset (a, b) of the kernel is number
// i + a Wp + b: one long vector loop over i serves every shape. The 2p outputs between two rows are discarded.
#pragma once

#include "matrix.h"

namespace {

struct MapShape {
    int64_t H, W, k, p, Wp;
    MapShape(int64_t H, int64_t W, int64_t k) : H(H), W(W), k(k), p(k / 2), Wp(W + 2 * (k / 2)) {}

    // Outputs in whole tiles of vectors; what lies beyond H Wp is computed from zeros or discarded.
    template <class F> int64_t outputs() const {
        constexpr int64_t tile = kTile * kLanes<F>;
        return (H * Wp + tile - 1) / tile * tile;
    }
    template <class F> int64_t padded() const { return outputs<F>() + (k - 1) * (Wp + 1); }
};

template <class F> void pad(const MapShape& m, const F* map, F* padded) {
    __builtin_memset(padded, 0, m.padded<F>() * sizeof(F));
    for (int64_t h = 0; h < m.H; ++h) __builtin_memcpy(padded + (h + m.p) * m.Wp + m.p, map + h * m.W, m.W * sizeof(F));
}

// out[i] = bias + sum over maps and offsets of weight x input.
template <class F> void convolve(const MapShape& m, int maps, const F* const* padded, const F* weight, F bias, F* out) {
    for (int64_t i = 0; i < m.outputs<F>(); i += kTile * kLanes<F>) {
        Vec<F> sum[kTile];
        for (int j = 0; j < kTile; ++j) sum[j] = broadcast<Vec<F>>(bias);
        const F* w = weight;
        for (int map = 0; map < maps; ++map)
            for (int64_t a = 0; a < m.k; ++a)
                for (int64_t b = 0; b < m.k; ++b, ++w) {
                    const F* at = padded[map] + i + a * m.Wp + b;
#pragma GCC unroll 4
                    for (int j = 0; j < kTile; ++j) sum[j] += load(at + j * kLanes<F>, Whole{}) * *w;
                }
        for (int j = 0; j < kTile; ++j) store(out + i + j * kLanes<F>, sum[j], Whole{});
    }
}

template <class F> void unpad(const MapShape& m, const F* out, F* map) {
    for (int64_t h = 0; h < m.H; ++h) __builtin_memcpy(map + h * m.W, out + h * m.Wp, m.W * sizeof(F));
}

// dweight[a][b] = sum over outputs of dz x input at offset (a, b). padded_dz read from (p, p) on has zeros between
// rows.
template <class F> void weight_gradient(const MapShape& m, const F* padded_dz, const F* padded, F* dweight) {
    const F* dz = padded_dz + m.p * m.Wp + m.p;
    auto offsets = [&]<int n>(int64_t a, int64_t b0, Count<n>) {  // n neighbours share one read of dz
        const F* at = padded + a * m.Wp + b0;
        double total[n] = {};
        each_part(m.H * m.Wp, kChunk, [&](int64_t first, int64_t last) {
            Vec<F> sum[n] = {};
            each_vector<F>(last - first, [&](int64_t i, auto lanes) {
                const Vec<F> d = load(dz + first + i, lanes);
#pragma GCC unroll 7
                for (int b = 0; b < n; ++b) sum[b] += load(at + b + first + i, lanes) * d;
            });
            for (int b = 0; b < n; ++b) total[b] += sum_lanes<F>(sum[b]);
        });
        for (int b = 0; b < n; ++b) dweight[a * m.k + b0 + b] = F(total[b]);
    };
    for (int64_t a = 0; a < m.k; ++a) {
        int64_t b = 0;
        for (; b + 7 <= m.k; b += 7) offsets(a, b, Count<7>{});
        for (; b + 3 <= m.k; b += 3) offsets(a, b, Count<3>{});
        for (; b < m.k; ++b) offsets(a, b, Count<1>{});
    }
}

}  // namespace
