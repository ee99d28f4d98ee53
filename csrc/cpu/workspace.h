// Where the vectors of one image lie: what the forward leaves for the backward, each image's part of the parameter
// gradients, and its scratch.
#pragma once

#include <initializer_list>

#include "passes/conv.h"
#include "passes/tile_sums.h"

namespace {

using cbam::Problem;

// Images that go through the gates together where the MLP's weights are larger than an image, so that both stay in
// cache.
constexpr int kMaxGroup = 8;

inline int group_size(const Problem& p, int64_t element_size, int64_t sum_size) {
    const int64_t weights = 2 * p.R * p.C * sum_size, image = p.C * p.HW() * element_size;
    return int(least(kMaxGroup, 1 + weights / image));
}

// What the forward leaves for the backward, for one image.
template <class F> struct Saved {
    F *mean_hw, *max_hw;            // (C) the two pools a, m
    F* g;                           // (C)
    F *hidden_mean, *hidden_max;    // (R) relu(w1 a + b1), relu(w1 m + b1)
    F *mean_c, *max_c;              // (HW) the two maps
    F* s;                           // (HW) the spatial gate; before its sigmoid if only attended
    int32_t *argmax_hw, *argmax_c;  // (C), (HW)

    Saved() = default;
    Saved(const Problem& p, int64_t n) {
        mean_hw = (F*)p.saved + n * p.saved_size();
        max_hw = mean_hw + p.C;
        g = max_hw + p.C;
        hidden_mean = g + p.C;
        hidden_max = hidden_mean + p.R;
        mean_c = hidden_max + p.R;
        max_c = mean_c + p.HW();
        s = max_c + p.HW();
        argmax_hw = p.index + n * (p.C + p.HW());
        argmax_c = argmax_hw + p.C;
    }
};

// One image's part of the parameter gradients.
template <class F> struct Partial {
    F* dlogit;                      // (C) gradient before the channel sigmoid
    F *dhidden_mean, *dhidden_max;  // (R) gradients before the ReLU
    F* hidden;                      // (R) hidden_mean + hidden_max
    F* dws;                         // (2 k k)
    F* dbs;                         // (1)

    Partial() = default;
    Partial(const Problem& p, int64_t n) {
        dlogit = (F*)p.partial + n * p.partial_size();
        dhidden_mean = dlogit + p.C;
        dhidden_max = dhidden_mean + p.R;
        hidden = dhidden_max + p.R;
        dws = hidden + p.R;
        dbs = dws + 2 * p.k * p.k;
    }
};

// Consecutive 64-byte aligned buffers; from a null base it only adds up their size.
struct Arena {
    char* base;
    int64_t used = 0;

    template <class F> F* take(int64_t n) {
        F* p = (F*)(base + used);
        used += (n * int64_t(sizeof(F)) + 63) / 64 * 64;
        return p;
    }
};

template <class F> struct Scratch {
    MapShape<F> map;
    F *framed[2], *framed_dz, *flipped;
    F *hidden, *dhidden;                     // (R)
    F *t, *routed, *share;                   // (HW)
    F *da, *dm;                              // (C)
    double* dg;                              // (C) gradient of the gate, times the gate
    Sums<F> direct, ds;                      // the products by channels and by pixels
    Sums<F> count_hw, count_c, from_pixels;  // for even ties
    int64_t bytes;

    Scratch(const Problem& p, void* base) : map(p.H, p.W, p.k) {
        const int64_t C = p.C, HW = p.HW(), rows = p.channels_last ? HW : C, cols = p.channels_last ? C : HW;
        const int64_t across = (cols + kTileCols - 1) / kTileCols, below = (rows + kTileRows - 1) / kTileRows;
        Arena arena{(char*)base};
        for (F** b : {&framed[0], &framed[1], &framed_dz}) *b = arena.take<F>(map.size());
        flipped = arena.take<F>(2 * p.k * p.k);
        for (F** b : {&hidden, &dhidden}) *b = arena.take<F>(p.R);
        for (F** b : {&t, &routed, &share}) *b = arena.take<F>(HW);
        for (F** b : {&da, &dm}) *b = arena.take<F>(C);
        dg = arena.take<double>(C);
        auto sums = [&](int64_t n, int64_t size) { return Sums<F>{arena.take<F>((n + 1) * size), n, size}; };
        auto of_channels = [&] { return sums(p.channels_last ? below : across, C); };
        auto of_pixels = [&] { return sums(p.channels_last ? across : below, HW); };
        direct = of_channels(), ds = of_pixels();
        if (p.even_ties) count_hw = of_channels(), count_c = of_pixels(), from_pixels = of_channels();
        bytes = arena.used;
    }
};

}  // namespace
