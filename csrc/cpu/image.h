// CBAM forward and backward over a range of images: the steps of the mathematics in order, on buffers small
// enough that an image is still in cache when the next step reads it.
//
// Forward reads x three times (statistics per channel, statistics per pixel, product) and writes y once; backward
// reads x twice, dy twice and writes dx once; all but the first read of each come from cache where an image fits.
// A few images go through together where the MLP's weights are larger than an image, so that both stay in cache.
#pragma once

#include <initializer_list>

#include "conv.h"
#include "kernels.h"
#include "matrix.h"
#include "matrix_backward.h"
#include "sigmoid.h"
#include "stats.h"

namespace {

using cbam::Problem;

constexpr int kMaxGroup = 8;

// What the forward leaves for the backward, for one image.
template <class F> struct Saved {
    F *mean_hw, *max_hw;            // (C) the two pools a, m
    F* g;                           // (C)
    F *hidden_mean, *hidden_max;    // (R) relu(w1 a + b1), relu(w1 m + b1)
    F *mean_c, *max_c;              // (HW) the two maps
    F* s;                           // (HW)
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
    // Backward, one of each per image of a group.
    F *t[kMaxGroup], *routed[kMaxGroup], *da[kMaxGroup], *dm[kMaxGroup];
    F *dhidden[kMaxGroup], *hidden[kMaxGroup];
    double* dg[kMaxGroup];  // gradient of the gate, times the gate
    int64_t bytes;

    Scratch(const Problem& p, void* base) : map(p.H, p.W, p.k) {
        Arena arena{(char*)base};
        for (F** b : {&framed[0], &framed[1], &framed_dz}) *b = arena.take<F>(map.size());
        flipped = arena.take<F>(2 * p.k * p.k);
        for (int i = 0; i < kMaxGroup; ++i) {
            t[i] = arena.take<F>(p.HW());
            routed[i] = arena.take<F>(p.HW());
            for (F** b : {&da[i], &dm[i]}) *b = arena.take<F>(p.C);
            for (F** b : {&dhidden[i], &hidden[i]}) *b = arena.take<F>(p.R);
            dg[i] = arena.take<double>(p.C);
        }
        bytes = arena.used;
    }
};

// g = sigmoid(w2 (relu(w1 a + b1) + relu(w1 m + b1)) + 2 b2): the MLP's second layer is linear, so its two inputs add.
template <class F> void channel_gate(const Problem& p, int count, const Saved<F>* saved, const Scratch<F>& scratch) {
    const F *pooled[2 * kMaxGroup], *b1 = (const F*)p.b1, *b2 = (const F*)p.b2;
    F *hidden[2 * kMaxGroup], *g[kMaxGroup];
    for (int i = 0; i < count; ++i) {
        pooled[2 * i] = saved[i].mean_hw;
        pooled[2 * i + 1] = saved[i].max_hw;
        hidden[2 * i] = saved[i].hidden_mean;
        hidden[2 * i + 1] = saved[i].hidden_max;
        g[i] = saved[i].g;
    }
    row_dots((const F*)p.w1, p.R, p.C, 2 * count, pooled, hidden);
    for (int i = 0; i < count; ++i) {
        for (int64_t r = 0; r < p.R; ++r) {
            for (F* h : {&hidden[2 * i][r], &hidden[2 * i + 1][r]}) {
                if (b1) *h += b1[r];
                if (*h < 0) *h = 0;
            }
            scratch.hidden[i][r] = hidden[2 * i][r] + hidden[2 * i + 1][r];
        }
    }
    row_dots((const F*)p.w2, p.C, p.R, count, scratch.hidden, g);
    for (int i = 0; i < count; ++i) {
        if (b2)
            for (int64_t c = 0; c < p.C; ++c) g[i][c] += 2 * b2[c];
        sigmoid(g[i], p.C);
    }
}

// s = sigmoid(conv([mean_c; max_c]) + bs).
template <class F> void spatial_gate(const Problem& p, const Saved<F>& saved, const Scratch<F>& scratch) {
    frame(scratch.map, saved.mean_c, scratch.framed[0]);
    frame(scratch.map, saved.max_c, scratch.framed[1]);
    F* out[1] = {saved.s};
    convolve<F, false>(scratch.map, scratch.framed, (const F*)p.ws, p.bs ? *(const F*)p.bs : F(0), out);
    sigmoid(saved.s, p.HW());
}

// From D[h, w] = sum over c of g x dy (in scratch.t): dws, dbs, and the gradients of the two maps, in scratch.t (mean,
// over C) and scratch.routed (maximum).
template <class F> void spatial_gate_backward(const Problem& p, const Saved<F>& saved, const Partial<F>& partial,
                                              const Scratch<F>& scratch, F* t, F* routed) {
    double dbs = 0;
    for (int64_t i = 0; i < p.HW(); ++i) dbs += t[i] *= saved.s[i] * (1 - saved.s[i]);
    *partial.dbs = F(dbs);
    frame(scratch.map, t, scratch.framed_dz);
    const int64_t kk = p.k * p.k;
    F* maps[2] = {saved.mean_c, saved.max_c};
    F* gradients[2] = {t, routed};
    for (int map = 0; map < 2; ++map) {
        frame(scratch.map, maps[map], scratch.framed[map]);
        weight_gradient(scratch.map, scratch.framed_dz, scratch.framed[map], partial.dws + map * kk);
        // The transposed convolution is one with the kernel turned by half a circle.
        const F* ws = (const F*)p.ws + map * kk;
        for (int64_t i = 0; i < kk; ++i) scratch.flipped[map * kk + i] = ws[kk - 1 - i];
    }
    convolve<F, true>(scratch.map, &scratch.framed_dz, scratch.flipped, F(0), gradients);
    for (int64_t i = 0; i < p.HW(); ++i) t[i] /= F(p.C);
}

// From g dg (in scratch.dg): the images' parts of the MLP's gradients, and the gradients of the pools, in scratch.da
// and scratch.dm.
template <class F> void channel_gate_backward(const Problem& p, int count, const Saved<F>* saved,
                                              const Partial<F>* partial, const Scratch<F>& scratch) {
    F *dlogit[kMaxGroup], *dhidden[2 * kMaxGroup], *dpooled[2 * kMaxGroup];
    for (int i = 0; i < count; ++i) {
        dlogit[i] = partial[i].dlogit;
        dhidden[2 * i] = partial[i].dhidden_mean;
        dhidden[2 * i + 1] = partial[i].dhidden_max;
        dpooled[2 * i] = scratch.da[i];
        dpooled[2 * i + 1] = scratch.dm[i];
        for (int64_t c = 0; c < p.C; ++c) dlogit[i][c] = F(scratch.dg[i][c]) * (1 - saved[i].g[c]);
    }
    col_dots((const F*)p.w2, p.C, p.R, count, dlogit, scratch.dhidden);
    for (int i = 0; i < count; ++i) {
        for (int64_t r = 0; r < p.R; ++r) {
            const F hm = saved[i].hidden_mean[r], hx = saved[i].hidden_max[r], d = scratch.dhidden[i][r];
            partial[i].dhidden_mean[r] = hm <= 0 ? 0 : d;
            partial[i].dhidden_max[r] = hx <= 0 ? 0 : d;
            partial[i].hidden[r] = hm + hx;
        }
    }
    col_dots((const F*)p.w1, p.R, p.C, 2 * count, dhidden, dpooled);
    for (int i = 0; i < count; ++i)
        for (int64_t c = 0; c < p.C; ++c) scratch.da[i][c] /= F(p.HW());
}

inline int group_size(const Problem& p, int64_t element_size, int64_t sum_size) {
    const int64_t weights = 2 * p.R * p.C * sum_size, image = p.C * p.HW() * element_size;
    return int(least(kMaxGroup, 1 + weights / image));
}

template <class T, bool channels_last> void forward(const Problem& p, int64_t first, int64_t last, void* base) {
    using F = Acc<T>;
    const int64_t C = p.C, HW = p.HW();
    const Scratch<F> scratch(p, base);
    each_part(last - first, group_size(p, sizeof(T), sizeof(F)), [&](int64_t i, int64_t end) {
        const int count = int(end - i);
        Saved<F> saved[kMaxGroup];
        for (int j = 0; j < count; ++j) {
            Saved<F>& v = saved[j] = Saved<F>(p, first + i + j);
            const T* x = (const T*)p.x + (first + i + j) * C * HW;
            if (channels_last) col_stats<T, false>(x, HW, C, nullptr, v.mean_hw, v.max_hw, v.argmax_hw);
            else row_stats<T, false>(x, C, HW, nullptr, v.mean_hw, v.max_hw, v.argmax_hw);
        }
        channel_gate(p, count, saved, scratch);
        for (int j = 0; j < count; ++j) {
            const Saved<F>& v = saved[j];
            const int64_t at = (first + i + j) * C * HW;
            const T *x = (const T*)p.x + at, *residual = p.residual ? (const T*)p.residual + at : nullptr;
            T* y = (T*)p.y + at;
            if (channels_last) row_stats<T, true>(x, HW, C, v.g, v.mean_c, v.max_c, v.argmax_c);
            else col_stats<T, true>(x, C, HW, v.g, v.mean_c, v.max_c, v.argmax_c);
            spatial_gate(p, v, scratch);
            if (channels_last) scale(x, HW, C, v.s, v.g, residual, p.relu, y);
            else scale(x, C, HW, v.g, v.s, residual, p.relu, y);
        }
    });
}

template <class T, bool channels_last> void backward(const Problem& p, int64_t first, int64_t last, void* base) {
    using F = Acc<T>;
    const int64_t C = p.C, HW = p.HW();
    const Scratch<F> scratch(p, base);
    // Where the forward ended in a ReLU, the first pass writes dy behind it for the last pass to read.
    T* masked = (T*)(p.dresidual ? p.dresidual : p.dx);
    each_part(last - first, group_size(p, sizeof(T), sizeof(F)), [&](int64_t i, int64_t end) {
        const int count = int(end - i);
        Saved<F> saved[kMaxGroup];
        Partial<F> partial[kMaxGroup];
        for (int j = 0; j < count; ++j) {
            const Saved<F>& v = saved[j] = Saved<F>(p, first + i + j);
            partial[j] = Partial<F>(p, first + i + j);
            const int64_t at = (first + i + j) * C * HW;
            const T *x = (const T*)p.x + at, *y = p.relu ? (const T*)p.y + at : nullptr;
            F *t = scratch.t[j], *routed = scratch.routed[j], *direct = scratch.da[j], *through_mean = scratch.dm[j];
            // D in t, and the three parts of dg: B = sum over pixels of s x dy, and what comes through the two
            // maps. dg times g is what is needed, and saves reading the maxima from x, since max_c = g x there.
            if (channels_last) products(x, (const T*)p.dy + at, y, masked + at, HW, C, v.s, v.g, t, direct);
            else products(x, (const T*)p.dy + at, y, masked + at, C, HW, v.g, v.s, direct, t);
            spatial_gate_backward(p, v, partial[j], scratch, t, routed);
            if (channels_last) col_dots(x, HW, C, 1, &t, &through_mean);
            else row_dots(x, C, HW, 1, &t, &through_mean);
            double* dg = scratch.dg[j];
            for (int64_t c = 0; c < C; ++c) dg[c] = (double(direct[c]) + through_mean[c]) * v.g[c];
            for (int64_t k = 0; k < HW; ++k) {
                dg[v.argmax_c[k]] += double(routed[k]) * v.max_c[k];
                routed[k] *= v.g[v.argmax_c[k]];
            }
        }
        channel_gate_backward(p, count, saved, partial, scratch);
        for (int j = 0; j < count; ++j) {
            const Saved<F>& v = saved[j];
            const int64_t at = (first + i + j) * C * HW;
            const T* z = (p.relu ? masked : (const T*)p.dy) + at;
            T* dx = (T*)p.dx + at;
            const F *t = scratch.t[j], *routed = scratch.routed[j], *da = scratch.da[j], *dm = scratch.dm[j];
            if (channels_last)
                input_gradient<T, true>(z, HW, C, v.s, t, v.g, da, v.argmax_hw, dm, v.argmax_c, routed, dx);
            else input_gradient<T, false>(z, C, HW, v.s, t, v.g, da, v.argmax_c, routed, v.argmax_hw, dm, dx);
        }
    });
}

// Sums over the images, in their order, of what backward left in p.partial.
template <class F> void backward_parameters(const Problem& p, int64_t first, int64_t last) {
    const int64_t R = p.R, C = p.C, stride = p.partial_size();
    auto sum = [&](const F* part, int64_t i) {
        double total = 0;
        for (int64_t n = 0; n < p.N; ++n) total += part[n * stride + i];
        return F(total);
    };
    const Saved<F> saved(p, 0);
    const Partial<F> partial(p, 0);
    const int64_t r1 = least(last, R), c0 = first > R ? first - R : 0, c1 = least(last - R, C);
    outer_sums<2>(first, r1, C, p.N, partial.dhidden_mean, stride, R, saved.mean_hw, p.saved_size(), C, (F*)p.dw1);
    outer_sums<1>(c0, c1, R, p.N, partial.dlogit, stride, 0, partial.hidden, stride, 0, (F*)p.dw2);
    for (int64_t r = first; p.db1 && r < r1; ++r)
        ((F*)p.db1)[r] = sum(partial.dhidden_mean, r) + sum(partial.dhidden_max, r);
    for (int64_t c = c0; p.db2 && c < c1; ++c) ((F*)p.db2)[c] = 2 * sum(partial.dlogit, c);
    if (last < R + C) return;
    for (int64_t i = 0; i < 2 * p.k * p.k; ++i) ((F*)p.dws)[i] = sum(partial.dws, i);
    if (p.dbs) *(F*)p.dbs = sum(partial.dbs, 0);
}

}  // namespace
