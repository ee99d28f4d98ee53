// The two gates, from the pooled values of an image, and their gradients.
#pragma once

#include "passes/scale_and_dots.h"
#include "sigmoid.h"
#include "workspace.h"

namespace {

using cbam::Share;

// A share's part of the channels. Where they are the columns, whole vectors of them.
template <class T, bool channels_last> Range channels_of(const Problem& p, const Share& share) {
    return part_of(share, p.C, channels_last ? kLanes<Acc<T>> : 1);
}

// A multiplication of the convolution takes about as long as the reading of an element.
inline int64_t convolution_work(const Problem& p) { return p.HW() * p.k * p.k; }

// relu(w1 a + b1) and relu(w1 m + b1), and their sum.
template <class F> void hidden_layer(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.R, kLanes<F>);
    const F *pooled[2 * kMaxGroup], *w1 = (const F*)p.w1, *b1 = (const F*)p.b1;
    F* hidden[2 * kMaxGroup];
    const int count = int(share.last - share.first);
    for (int i = 0; i < count; ++i) {
        const Saved<F> v(p, share.first + i);
        pooled[2 * i] = v.mean_hw;
        pooled[2 * i + 1] = v.max_hw;
        hidden[2 * i] = v.hidden_mean + part.first;
        hidden[2 * i + 1] = v.hidden_max + part.first;
    }
    row_dots(w1 + part.first * p.C, part.size(), p.C, 2 * count, pooled, hidden);
    for (int i = 0; i < count; ++i) {
        F* sum = Scratch<F>(p, share.scratch_of(share.first + i)).hidden;
        for (int64_t r = part.first; r < part.last; ++r) {
            F *mean = hidden[2 * i] + r - part.first, *max = hidden[2 * i + 1] + r - part.first;
            for (F* h : {mean, max}) {
                if (b1) *h += b1[r];
                if (*h < 0) *h = 0;
            }
            sum[r] = *mean + *max;
        }
    }
}

// g = sigmoid(w2 (relu(w1 a + b1) + relu(w1 m + b1)) + 2 b2): the MLP's second layer is linear, so its two inputs add.
template <class F> void channel_gate(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.C, kLanes<F>);
    const F *hidden[kMaxGroup], *w2 = (const F*)p.w2, *b2 = (const F*)p.b2;
    F* g[kMaxGroup];
    const int count = int(share.last - share.first);
    for (int i = 0; i < count; ++i) {
        hidden[i] = Scratch<F>(p, share.scratch_of(share.first + i)).hidden;
        g[i] = Saved<F>(p, share.first + i).g + part.first;
    }
    row_dots(w2 + part.first * p.R, part.size(), p.R, count, hidden, g);
    for (int i = 0; i < count; ++i) {
        if (b2)
            for (int64_t c = 0; c < part.size(); ++c) g[i][c] += 2 * b2[part.first + c];
        sigmoid(g[i], part.size());
    }
}

// These rows of s = conv([mean_c; max_c]) + bs, before its sigmoid.
template <class F> void spatial_logits(const Problem& p, Range rows, const Saved<F>& v, const Scratch<F>& scratch) {
    F* out[1] = {v.s};
    convolve<F, false>(scratch.map, rows, scratch.framed, (const F*)p.ws, p.bs ? *(const F*)p.bs : F(0), out);
}

// From the framed gradient of the convolution's result: dws, dbs, and these rows of the gradients of the two maps, in t
// (mean, over C) and routed (maximum).
template <class F> void spatial_logits_backward(const Problem& p, const Share& share, Range rows,
                                                const Partial<F>& partial, const Scratch<F>& scratch) {
    const int64_t kk = p.k * p.k;
    F* gradients[2] = {scratch.t, scratch.routed};
    convolve<F, true>(scratch.map, rows, &scratch.framed_dz, scratch.flipped, F(0), gradients);
    for (int64_t k = rows.first * p.W; k < rows.last * p.W; ++k) scratch.t[k] /= F(p.C);
    const int64_t steps = (p.k + kKernelRows - 1) / kKernelRows;
    const Range part = part_of(share, 2 * steps);
    for (int64_t i = part.first; i < part.last; ++i) {
        const int64_t map = i / steps, a = i % steps * kKernelRows;
        weight_gradient(scratch.map, a, scratch.framed_dz, scratch.framed[map], partial.dws + map * kk);
    }
    if (share.part + 1 == share.parts) *partial.dbs = F(framed_sum(scratch.map, scratch.framed_dz));
}

// From the gradients before the channel sigmoid: those before the ReLU of the MLP.
template <class F> void hidden_layer_backward(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.R, kLanes<F>);
    const F *dlogit[kMaxGroup], *w2 = (const F*)p.w2;
    F* dhidden[kMaxGroup];
    const int count = int(share.last - share.first);
    for (int i = 0; i < count; ++i) {
        dlogit[i] = Partial<F>(p, share.first + i).dlogit;
        dhidden[i] = Scratch<F>(p, share.scratch_of(share.first + i)).dhidden + part.first;
    }
    col_dots(w2 + part.first, p.C, part.size(), p.R, count, dlogit, dhidden);
    for (int i = 0; i < count; ++i) {
        const Saved<F> v(p, share.first + i);
        const Partial<F> partial(p, share.first + i);
        for (int64_t r = part.first; r < part.last; ++r) {
            const F hm = v.hidden_mean[r], hx = v.hidden_max[r], d = dhidden[i][r - part.first];
            partial.dhidden_mean[r] = hm <= 0 ? 0 : d;
            partial.dhidden_max[r] = hx <= 0 ? 0 : d;
            partial.hidden[r] = hm + hx;
        }
    }
}

// Those of the pools, in da (mean, over HW) and dm (maximum; of even ties, each one's share).
template <class F> void pools_backward(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.C, kLanes<F>);
    const F *dhidden[2 * kMaxGroup], *w1 = (const F*)p.w1;
    F* dpooled[2 * kMaxGroup];
    const int count = int(share.last - share.first);
    for (int i = 0; i < count; ++i) {
        const Partial<F> partial(p, share.first + i);
        const Scratch<F> scratch(p, share.scratch_of(share.first + i));
        dhidden[2 * i] = partial.dhidden_mean;
        dhidden[2 * i + 1] = partial.dhidden_max;
        dpooled[2 * i] = scratch.da + part.first;
        dpooled[2 * i + 1] = scratch.dm + part.first;
    }
    col_dots(w1 + part.first, p.R, part.size(), p.C, 2 * count, dhidden, dpooled);
    for (int i = 0; i < count; ++i) {
        const Scratch<F> scratch(p, share.scratch_of(share.first + i));
        const F* counted = p.even_ties ? scratch.count_hw.total(part) : nullptr;
        for (int64_t c = part.first; c < part.last; ++c) {
            scratch.da[c] /= F(p.HW());
            if (counted) scratch.dm[c] /= counted[c];
        }
    }
}

}  // namespace
