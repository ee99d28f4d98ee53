// The two gates, from the pooled values of an image, and their gradients.
#pragma once

#include "activations.h"
#include "workspace.h"

namespace {

using cbam::Share;

// The channels of a share; whole vectors if channels are the columns.
template <class T, bool channels_last> Range channels_of(const Problem& p, const Share& share) {
    return part_of(share, p.C, channels_last ? kLanes<Acc<T>> : 1);
}

// A multiplication of the convolution takes about as long as reading an element.
inline int64_t convolution_work(const Problem& p) { return p.HW() * p.k * p.k; }

// The absent gate.
template <class F> void absent_gate(const Problem& p, const Share& share) {
    for (int64_t n = share.first; n < share.last; ++n)
        fill(Scratch<F>(p, share.scratch_of(n)).ones, p.C > p.HW() ? p.C : p.HW(), F(1));
}

// The pointers of(image, i) for i < n and each image of the share, image by image.
template <class P, class Of> int collect(const Share& share, int n, P (&pointers)[2 * kMaxGroup], Of of) {
    const int count = int(share.last - share.first) * n;
    for (int i = 0; i < count; ++i) pointers[i] = of(share.first + i / n, i % n);
    return count;
}

// The index of the second layer's input vector with the activations of a term.
inline int gate_of(const Problem& p, int term) { return p.switches.gates() == 2 ? term : 0; }

// Adds a term to a part of the second layer's input vector: act(h), or, for a single layer, the pool h. If the vector
// already has the first term, the activations use the buffer room.
template <class F> void add_term(const Problem& p, int term, Range part, const F* h, F* room, F* sum) {
    const int gate = gate_of(p, term);
    const bool shared = term && !gate;
    sum += gate * p.R + part.first;
    F* value = shared ? room + part.first : sum;
    if (p.w1) activate(p.switches.activation, h, part.size(), value);
    else __builtin_memcpy(value, h, part.size() * sizeof(F));
    for (int64_t r = 0; shared && r < part.size(); ++r) sum[r] += value[r];
}

// The second layer's input vectors: the sums of act(w1 a + b1) and act(w1 m + b1), or, for a single layer, of the
// pools.
template <class F> void hidden_layer(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.R, kLanes<F>);
    const int terms = p.switches.terms();
    const F *pooled[2 * kMaxGroup] = {}, *w1 = (const F*)p.w1, *b1 = (const F*)p.b1;
    F* hidden[2 * kMaxGroup] = {};
    const int count = collect(share, terms, pooled, [&](int64_t n, int t) { return Saved<F>(p, n).pool(t); });
    if (w1) {
        collect(share, terms, hidden, [&](int64_t n, int t) { return Saved<F>(p, n).hidden + t * p.R + part.first; });
        row_dots(w1 + part.first * p.C, part.size(), p.C, count, pooled, hidden);
    }
    for (int i = 0; i < count; ++i) {
        const Scratch<F> scratch(p, share.scratch_of(share.first + i / terms));
        for (int64_t r = 0; b1 && r < part.size(); ++r) hidden[i][r] += b1[part.first + r];
        const F* h = w1 ? hidden[i] : pooled[i] + part.first;
        add_term(p, i % terms, part, h, scratch.dhidden, scratch.hidden);
    }
}

// g = sigmoid(w2 (act(w1 a + b1) + act(w1 m + b1)) + 2 b2): the MLP's second layer is linear, so its inputs are added
// first, unless each has its own sigmoid.
template <class F> void channel_gate(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.C, kLanes<F>);
    const int gates = p.switches.gates(), terms = p.switches.terms();
    const F *hidden[2 * kMaxGroup] = {}, *w2 = (const F*)p.w2, *b2 = (const F*)p.b2;
    F* logits[2 * kMaxGroup] = {};
    collect(share, gates, hidden,
            [&](int64_t n, int i) { return Scratch<F>(p, share.scratch_of(n)).hidden + i * p.R; });
    const int count = collect(share, gates, logits, [&](int64_t n, int i) {
        const Saved<F> v(p, n);
        return (gates == 2 ? v.gate_terms + i * p.C : v.g) + part.first;
    });
    row_dots(w2 + part.first * p.R, part.size(), p.R, count, hidden, logits);
    const F times = F(terms / gates);
    for (int i = 0; i < count; ++i) {
        if (b2)
            for (int64_t c = 0; c < part.size(); ++c) logits[i][c] += times * b2[part.first + c];
        gate(p.switches.hard_channel, logits[i], part.size());
    }
    for (int i = 0; gates == 2 && i < count; i += 2) {
        F* g = Saved<F>(p, share.first + i / 2).g + part.first;
        for (int64_t c = 0; c < part.size(); ++c) g[c] = logits[i][c] + logits[i + 1][c];
    }
}

// These rows of s = conv([mean_c; max_c]) + bs, before its sigmoid.
template <class F> void spatial_logits(const Problem& p, Range rows, const Saved<F>& v, const Scratch<F>& scratch) {
    F* out[1] = {v.s};
    const F* kernel = p.ws_channels_last ? scratch.kernel : (const F*)p.ws;
    convolve<F, false>(scratch.map, rows, scratch.framed, kernel, p.bs ? *(const F*)p.bs : F(0), out);
}

// From the framed gradient of the convolution's result: dws, dbs, and these rows of the gradients of the two maps, into
// t (mean, divided by C) and routed (maximum).
template <class F> void spatial_logits_backward(const Problem& p, const Share& share, Range rows,
                                                const Partial<F>& partial, const Scratch<F>& scratch) {
    const int64_t kk = p.k * p.k;
    F* gradients[2] = {scratch.t, scratch.routed};
    convolve<F, true>(scratch.map, rows, &scratch.framed_dz, scratch.kernel, F(0), gradients);
    for (int64_t k = rows.first * p.W; k < rows.last * p.W; ++k) scratch.t[k] /= F(p.C);
    const int64_t steps = (p.k + kKernelRows - 1) / kKernelRows;
    const Range part = part_of(share, 2 * steps);
    for (int64_t i = part.first; i < part.last; ++i) {
        const int64_t map = i / steps, a = i % steps * kKernelRows;
        weight_gradient(scratch.map, a, scratch.framed_dz, scratch.framed[map], partial.dws + map * kk);
    }
    if (share.part + 1 == share.parts) *partial.dbs = F(framed_sum(scratch.map, scratch.framed_dz));
}

// The gradients before the MLP's activation, from those before the channel sigmoid.
template <class F> void hidden_layer_backward(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.R, kLanes<F>);
    const int gates = p.switches.gates(), terms = p.switches.terms();
    const F *dlogit[2 * kMaxGroup] = {}, *w2 = (const F*)p.w2;
    F* dhidden[2 * kMaxGroup] = {};
    collect(share, gates, dlogit, [&](int64_t n, int i) { return Partial<F>(p, n).dlogit + i * p.C; });
    const int count = collect(share, gates, dhidden, [&](int64_t n, int i) {
        return Scratch<F>(p, share.scratch_of(n)).dhidden + i * p.R + part.first;
    });
    col_dots(w2 + part.first, p.C, part.size(), p.R, count, dlogit, dhidden);
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<F> v(p, n);
        const Partial<F> partial(p, n);
        const Scratch<F> scratch(p, share.scratch_of(n));
        for (int t = 0; t < terms; ++t) {
            const F* h = (p.w1 ? v.hidden + t * p.R : v.pool(t)) + part.first;
            const F* above = scratch.dhidden + gate_of(p, t) * p.R + part.first;
            F* d = partial.dhidden + t * p.R + part.first;
            if (p.w1) through_activation(p.switches.activation, h, above, part.size(), d);
            else __builtin_memcpy(d, above, part.size() * sizeof(F));
            add_term(p, t, part, h, scratch.hidden, partial.hidden);
        }
    }
}

// The gradients of the pools, into da (mean, divided by HW) and dm (maximum; with even ties divided by the number of
// tied elements).
template <class F> void pools_backward(const Problem& p, const Share& share) {
    const Range part = part_of(share, p.C, kLanes<F>);
    const int terms = p.switches.terms();
    const F *dhidden[2 * kMaxGroup] = {}, *w1 = (const F*)p.w1;
    F* dpooled[2 * kMaxGroup] = {};
    const int count =
        collect(share, terms, dhidden, [&](int64_t n, int t) { return Partial<F>(p, n).dhidden + t * p.R; });
    collect(share, terms, dpooled, [&](int64_t n, int t) {
        const Scratch<F> scratch(p, share.scratch_of(n));
        return (t || p.switches.no_mean ? scratch.dm : scratch.da) + part.first;
    });
    if (w1) col_dots(w1 + part.first, p.R, part.size(), p.C, count, dhidden, dpooled);
    else
        for (int i = 0; i < count; ++i) __builtin_memcpy(dpooled[i], dhidden[i] + part.first, part.size() * sizeof(F));
    for (int64_t n = share.first; n < share.last; ++n) {
        const Scratch<F> scratch(p, share.scratch_of(n));
        F *da = scratch.da, *dm = scratch.dm;
        const F* counted = p.switches.even_ties && !p.switches.no_max ? scratch.count_hw.total(part) : nullptr;
        for (int64_t c = part.first; p.switches.mean_of_pools && c < part.last; ++c) dm[c] = da[c] /= 2;
        for (int64_t c = part.first; !p.switches.no_mean && c < part.last; ++c) da[c] /= F(p.HW());
        if (p.switches.no_mean) fill(da + part.first, part.size(), F(0));
        if (p.switches.no_max) fill(dm + part.first, part.size(), F(0));
        for (int64_t c = part.first; counted && c < part.last; ++c) dm[c] /= counted[c];
    }
}

}  // namespace
