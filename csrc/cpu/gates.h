// The two gates, from the pooled values of an image, and their gradients.
#pragma once

#include "buffers.h"
#include "matrix.h"
#include "sigmoid.h"

namespace {

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

// s = conv([mean_c; max_c]) + bs, before its sigmoid.
template <class F> void spatial_logits(const Problem& p, const Saved<F>& saved, const Scratch<F>& scratch) {
    frame(scratch.map, saved.mean_c, scratch.framed[0]);
    frame(scratch.map, saved.max_c, scratch.framed[1]);
    F* out[1] = {saved.s};
    convolve<F, false>(scratch.map, scratch.framed, (const F*)p.ws, p.bs ? *(const F*)p.bs : F(0), out);
}

// From the gradient of the convolution's result, in t: dws, dbs, and the gradients of the two maps, in t (mean, over C)
// and routed (maximum).
template <class F> void spatial_logits_backward(const Problem& p, const Saved<F>& saved, const Partial<F>& partial,
                                                const Scratch<F>& scratch, F* t, F* routed) {
    double dbs = 0;
    for (int64_t i = 0; i < p.HW(); ++i) dbs += t[i];
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

}  // namespace
