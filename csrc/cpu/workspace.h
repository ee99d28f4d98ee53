// The buffers of an image: saved tensors of the forward, parameter gradients per image, and scratch.
#pragma once

#include <initializer_list>

#include "passes/conv.h"
#include "passes/tile_sums.h"

namespace {

using cbam::Problem;

// Images that go through the gates together if the MLP's weights are larger than an image, so that both stay in the
// cache.
constexpr int kMaxGroup = 8;

inline int group_size(const Problem& p, int64_t element_size, int64_t sum_size) {
    const int64_t weights = 2 * p.R * p.C * sum_size, image = p.C * p.HW() * element_size;
    return int(least(kMaxGroup, 1 + weights / image));
}

// The saved tensors of an image. Absent ones are null.
template <class F> struct Saved {
    F *mean_hw, *max_hw;            // (C) the pools a, m; a is the mean of both if the MLP uses that
    F* g;                           // (C)
    F* hidden;                      // (terms, R) w1 a + b1, w1 m + b1
    F* gate_terms;                  // (2, C) the two gates if g is their sum
    F *mean_c, *max_c;              // (HW) the two maps
    F* s;                           // (HW) the spatial gate; after gates_forward before its sigmoid
    int32_t *argmax_hw, *argmax_c;  // (C), (HW)

    CBAM_PASS Saved(const Problem& p, int64_t n) {
        F* next = (F*)p.saved + n * p.saved_size();
        int32_t* place = p.index + n * p.index_size();
        auto take = [](auto*& from, bool there, int64_t size) {
            auto* at = from;
            from += there ? size : 0;
            return there ? at : nullptr;
        };
        mean_hw = take(next, p.channel && !p.switches.no_mean, p.C);
        max_hw = take(next, p.channel && !p.switches.no_max, p.C);
        g = take(next, p.channel, p.C);
        hidden = take(next, p.saved_hidden, p.saved_hidden);
        gate_terms = take(next, p.channel && p.switches.gates() == 2, 2 * p.C);
        mean_c = take(next, p.spatial, p.HW());
        max_c = take(next, p.spatial, p.HW());
        s = take(next, p.spatial, p.HW());
        argmax_hw = take(place, max_hw, p.C);
        argmax_c = take(place, p.spatial, p.HW());
    }

    // The MLP's term-th input.
    F* pool(int term) const { return term || !mean_hw ? max_hw : mean_hw; }
};

// The parameter gradients of an image.
template <class F> struct Partial {
    F* dlogit;   // (gates, C) gradient before the channel sigmoid
    F* hidden;   // (gates, R) input of the second layer: sums over the terms of a sigmoid
    F* dhidden;  // (terms, R) gradients before the activation
    F* dws;      // (2 k k)
    F* dbs;      // (1)

    CBAM_PASS Partial(const Problem& p, int64_t n) {
        dlogit = (F*)p.partial + n * p.partial_size();
        hidden = dlogit + p.switches.gates() * p.C;
        dhidden = hidden + p.switches.gates() * p.R;
        dws = dhidden + p.switches.terms() * p.R;
        dbs = dws + 2 * p.k * p.k;
    }
};

template <class F> struct Scratch {
    MapShape<F> map;
    F *framed[2], *framed_dz;
    F* kernel;                               // (2, k, k) ws; in the backward flipped
    F *hidden, *dhidden;                     // (gates, R)
    F* ones;                                 // (C) or (HW), the longer one, for an absent gate
    F *t, *routed, *share;                   // (HW)
    F *da, *dm;                              // (C)
    double* dg;                              // (C) gradient of the gate, times the gate
    Sums<F> direct, ds;                      // the products per channel and per pixel
    Sums<F> count_hw, count_c, from_pixels;  // for even ties
    int64_t bytes;

    CBAM_PASS Scratch(const Problem& p, void* base) : map(p.H, p.W, p.k) {
        const int64_t C = p.C, HW = p.HW(), rows = p.channels_last ? HW : C, cols = p.channels_last ? C : HW;
        const int64_t across = (cols + kTileCols - 1) / kTileCols, below = (rows + kTileRows - 1) / kTileRows;
        // Consecutive buffers, each aligned to 64 bytes; with a null base this only adds their sizes.
        auto bytes_of = [](int64_t n, int64_t size) { return (n * size + 63) & ~int64_t(63); };
        const int64_t of_map = bytes_of(map.size(), sizeof(F)),
                      of_hidden = bytes_of(p.switches.gates() * p.R, sizeof(F));
        const int64_t of_c = bytes_of(C, sizeof(F)), of_hw = bytes_of(HW, sizeof(F));
        char* next = (char*)base;
        auto take = [&](int64_t size) {
            char* at = next;
            next += size;
            return (F*)at;
        };
        for (F** b : {&framed[0], &framed[1], &framed_dz}) *b = take(of_map);
        kernel = take(bytes_of(2 * p.k * p.k, sizeof(F)));
        for (F** b : {&hidden, &dhidden}) *b = take(of_hidden);
        ones = take(p.channel && p.spatial ? 0 : C > HW ? of_c : of_hw);
        for (F** b : {&t, &routed, &share}) *b = take(of_hw);
        for (F** b : {&da, &dm}) *b = take(of_c);
        dg = (double*)take(bytes_of(C, sizeof(double)));
        auto sums = [&](int64_t n, int64_t size) {
            return Sums<F>{take(bytes_of((n + 1) * size, sizeof(F))), n, size};
        };
        auto of_channels = [&] { return sums(p.channels_last ? below : across, C); };
        auto of_pixels = [&] { return sums(p.channels_last ? across : below, HW); };
        direct = of_channels(), ds = of_pixels();
        if (p.switches.even_ties) count_hw = of_channels(), count_c = of_pixels(), from_pixels = of_channels();
        bytes = next - (char*)base;
    }
};

// The two gates of an image; an absent gate is ones in the scratch.
template <class F> struct Gates {
    const F *g, *s;

    Gates(const Problem& p, int64_t n, const Scratch<F>& scratch) {
        const Saved<F> saved(p, n);
        g = p.channel ? saved.g : scratch.ones;
        s = !p.spatial ? scratch.ones : p.s ? (const F*)p.s + n * p.HW() : saved.s;
    }
};

}  // namespace
