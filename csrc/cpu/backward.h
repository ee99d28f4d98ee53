// The steps of the backward. It reads x twice (products with dy, sums through the mean map), reads dy twice (products,
// dx) and writes dx once. The second reads come from the cache if an image fits.
#pragma once

#include "gates.h"
#include "passes/backward.h"
#include "passes/even_ties.h"

namespace {

using cbam::Steps;

// If the forward ended in a ReLU, the first pass writes dy after the ReLU's backward here, and the last pass reads it.
template <class T> T* masked_dy(const Problem& p) { return (T*)(p.dresidual ? p.dresidual : p.dx); }

// For the tiles, the sums over pixels of s x dy and over channels of g x dy, for the present gates.
template <class T, bool channels_last> void gate_products(const Problem& p, const Share& share) {
    for (int64_t n = share.first; n < share.last; ++n) {
        const int64_t at = n * p.C * p.HW();
        const T *x = (const T*)p.x + at, *dy = (const T*)p.dy + at;
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        const Gates gates(p, n, scratch);
        const auto *u = channels_last ? gates.s : gates.g, *w = channels_last ? gates.g : gates.s;
        const T* y = p.relu ? (const T*)p.y + at : nullptr;
        T* masked = p.relu ? masked_dy<T>(p) + at : nullptr;
        auto* pass = products<false, true, true, T>;
        if (p.relu) pass = products<true, true, true, T>;  // with y and the write, a second sum costs little
        else if (!p.spatial) pass = products<false, !channels_last, channels_last, T>;
        else if (!p.channel) pass = products<false, channels_last, !channels_last, T>;
        each_tile_of(share, channels_last, scratch.direct, scratch.ds,
                     [&](auto tile) { pass(x, dy, y, masked, u, w, tile); });
    }
}

// The operator gate_grads: dg[c] = sum over pixels of s x dy and ds[h, w] = sum over channels of g x dy.
template <class F> void give_gate_grads(const Problem& p, const Share& share) {
    for (int64_t n = share.first; n < share.last; ++n) {
        const Scratch<F> scratch(p, share.scratch_of(n));
        if (p.channel) __builtin_memcpy((F*)p.dg + n * p.C, scratch.direct.total({0, p.C}), p.C * sizeof(F));
        else fill((F*)p.dg + n * p.C, p.C, F(0));
        __builtin_memcpy((F*)p.ds + n * p.HW(), scratch.ds.total({0, p.HW()}), p.HW() * sizeof(F));
    }
}

template <class T, bool channels_last> Steps gate_grads_steps(const Problem& p) {
    Steps steps;
    if (!p.channel) steps.add(absent_gate<Acc<T>>, 0);
    steps.add(gate_products<T, channels_last>, 2 * p.C * p.HW());
    steps.add(give_gate_grads<Acc<T>>, 0);
    return steps;
}

// The input of the convolution's backward: the gradient of its result and the maps, framed, and the flipped kernel,
// since the transposed convolution is a convolution with it.
template <class F> void logit_gradient(const Problem& p, const Share& share) {
    const Range rows = part_of(share, p.H), pixels = rows.times(p.W);
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<F> v(p, n);
        const Scratch<F> scratch(p, share.scratch_of(n));
        if (p.given) {
            const F* given = p.ds ? (const F*)p.ds + n * p.HW() : nullptr;
            for (int64_t k = pixels.first; k < pixels.last; ++k) scratch.t[k] = given ? given[k] : F(0);
        } else {
            const F* ds = scratch.ds.total(pixels);
            for (int64_t k = pixels.first; k < pixels.last; ++k)
                scratch.t[k] = through_gate(p.switches.hard_spatial, v.s[k], ds[k]);
        }
        frame(scratch.map, scratch.t, rows, scratch.framed_dz);
        frame(scratch.map, v.mean_c, rows, scratch.framed[0]);
        frame(scratch.map, v.max_c, rows, scratch.framed[1]);
        const int64_t kk = p.k * p.k;
        for (int64_t i = 0; share.part == 0 && i < 2 * kk; ++i)
            scratch.kernel[i] = ((const F*)p.ws)[p.tap(i < kk ? kk - 1 - i : 3 * kk - 1 - i)];
    }
}

// Without a spatial gate.
template <class F> void no_map_gradients(const Problem& p, const Share& share) {
    for (int64_t n = share.first; n < share.last; ++n) {
        const Scratch<F> scratch(p, share.scratch_of(n));
        for (F* absent : {scratch.t, scratch.routed}) fill(absent, p.HW(), F(0));
        fill(scratch.dm, p.C, F(0));
    }
}

// dws, dbs and the gradients of the maps. With even ties, a pixel's gradient is divided by the number of tied channels.
template <class F> void maps_backward(const Problem& p, const Share& share) {
    const Range rows = part_of(share, p.H), pixels = rows.times(p.W);
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<F> v(p, n);
        const Scratch<F> scratch(p, share.scratch_of(n));
        spatial_logits_backward(p, share, rows, Partial<F>(p, n), scratch);
        const F* count = p.switches.even_ties ? scratch.count_c.total(pixels) : nullptr;
        for (int64_t k = pixels.first; count && k < pixels.last; ++k)
            scratch.share[k] = (scratch.routed[k] /= count[k]) * v.max_c[k];
    }
}

// The part of dg through the mean map, into dm.
template <class T, bool channels_last> void through_mean(const Problem& p, const Share& share) {
    const Range part = channels_of<T, channels_last>(p, share);
    for (int64_t n = share.first; n < share.last; ++n) {
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        const T* x = (const T*)p.x + n * p.C * p.HW();
        auto* dm = scratch.dm + part.first;
        if (channels_last) col_dots(x + part.first, p.HW(), part.size(), p.C, 1, &scratch.t, &dm);
        else row_dots(x + part.first * p.HW(), part.size(), p.HW(), 1, &scratch.t, &dm);
    }
}

// With even ties, the numbers of tied elements.
template <class T, bool channels_last> void count_maxima(const Problem& p, const Share& share) {
    for (int64_t n = share.first; n < share.last; ++n) {
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        const Maxima<T, channels_last> maxima(p, n, scratch);
        each_tile_of(share, channels_last, scratch.count_hw, scratch.count_c, [&](auto tile) { maxima.count(tile); });
    }
}

// With even ties, the part of g dg through the maximum map.
template <class T, bool channels_last> void through_maxima(const Problem& p, const Share& share) {
    for (int64_t n = share.first; n < share.last; ++n) {
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        const Maxima<T, channels_last> maxima(p, n, scratch);
        each_tile_of(share, channels_last, scratch.from_pixels, scratch.count_c,
                     [&](auto tile) { maxima.sum_shares(scratch.share, tile); });
    }
}

// The gradient before the sigmoid, from the three parts of dg: direct, mean map and maximum map. A sigmoid needs only
// dg times g, which avoids reading x at the argmax, since max_c = g x there.
template <class F> void gate_gradient(const Problem& p, const Share& share) {
    const int64_t C = p.C;
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<F> v(p, n);
        const Scratch<F> scratch(p, share.scratch_of(n));
        F *routed = scratch.routed, *da = scratch.da, *dm = scratch.dm;
        if (!p.channel) {
            for (F* absent : {da, dm}) fill(absent, C, F(0));
            continue;
        }
        double* dg = scratch.dg;
        const F* direct = !p.given ? scratch.direct.total({0, C}) : p.dg ? (const F*)p.dg + n * C : nullptr;
        for (int64_t c = 0; c < C; ++c) dg[c] = (double(direct ? direct[c] : 0) + dm[c]) * v.g[c];
        if (p.spatial && p.switches.even_ties) {
            const F* from_pixels = scratch.from_pixels.total({0, C});
            for (int64_t c = 0; c < C; ++c) dg[c] += from_pixels[c];
        } else if (p.spatial) {
            for (int64_t k = 0; k < p.HW(); ++k) {
                dg[v.argmax_c[k]] += double(routed[k]) * v.max_c[k];
                routed[k] *= v.g[v.argmax_c[k]];
            }
        }
        F* dlogit = Partial<F>(p, n).dlogit;
        if (v.gate_terms || p.switches.hard_channel)
            for (int64_t i = 0; i < p.switches.gates() * C; ++i) {
                const F g = v.g[i % C], term = v.gate_terms ? v.gate_terms[i] : g;
                if (g != 0) dlogit[i] = through_gate(p.switches.hard_channel, term, F(dg[i % C] / g));
                else dlogit[i] = p.switches.hard_channel ? F(0) : F(dg[i % C]);  // NaN where the gradient is infinite
            }
        else
            for (int64_t c = 0; c < C; ++c) dlogit[c] = F(dg[c]) * (1 - v.g[c]);
    }
}

template <class T, bool channels_last> void x_gradient(const Problem& p, const Share& share) {
    const int64_t C = p.C, HW = p.HW();
    const Range part = part_of(share, channels_last ? HW : C, kGroup);
    for (int64_t n = share.first; n < share.last; ++n) {
        const int64_t at = n * C * HW;
        const Saved<Acc<T>> v(p, n);
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        const T* z = p.dy ? (p.relu ? masked_dy<T>(p) : (const T*)p.dy) + at : nullptr;
        T* dx = (T*)p.dx + at;
        const Gates gates(p, n, scratch);
        // Without a spatial gate, 0 times g must be 0 for any g.
        const auto *g = p.dy || p.spatial ? gates.g : scratch.ones, *s = gates.s, *t = scratch.t;
        const auto* routed = scratch.routed;
        const auto *da = scratch.da, *dm = scratch.dm;
        const int64_t cols = channels_last ? C : HW;
        const auto *by_column = channels_last ? v.argmax_hw : v.argmax_c,
                   *by_row = channels_last ? v.argmax_c : v.argmax_hw;
        const auto *col_add = channels_last ? dm : routed, *row_add = channels_last ? routed : dm;
        auto* pass = input_gradient<T, channels_last, false, true>;
        if (z)
            pass = by_column ? input_gradient<T, channels_last, true, true>
                             : input_gradient<T, channels_last, true, false>;
        else if (!by_column) pass = input_gradient<T, channels_last, false, false>;
        if (p.switches.even_ties)
            Maxima<T, channels_last>(p, n, scratch).input_gradient(z, part, s, t, routed, g, da, dm, dx);
        else pass(z, part, cols, s, t, g, da, by_column, col_add, by_row, row_add, dx);
    }
}

template <class T, bool channels_last> Steps backward_steps(const Problem& p) {
    using F = Acc<T>;
    const int64_t image = p.C * p.HW(), weights = p.R * p.C;
    Steps steps;
    if (!(p.channel && p.spatial)) steps.add(absent_gate<F>, 0);
    if (!p.given) steps.add(gate_products<T, channels_last>, 2 * image);
    if (p.switches.even_ties) steps.add(count_maxima<T, channels_last>, image);
    if (p.spatial) {
        steps.add(logit_gradient<F>, 4 * p.HW());
        steps.add(maps_backward<F>, 2 * convolution_work(p));
        if (p.channel) steps.add(through_mean<T, channels_last>, image);
        if (p.channel && p.switches.even_ties) steps.add(through_maxima<T, channels_last>, image);
    } else {
        steps.add(no_map_gradients<F>, 0);
    }
    steps.add(gate_gradient<F>, 0);
    if (p.channel) {
        steps.add(hidden_layer_backward<F>, weights);
        steps.add(pools_backward<F>, weights);
    }
    steps.add(x_gradient<T, channels_last>, 2 * image);
    return steps;
}

// The sums over the images, in order, of p.partial.
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
    const int terms = p.switches.terms(), gates = p.switches.gates();
    // Sums over images and n terms of u (rows of the result) times v (columns).
    auto outer = [&](int n, int64_t from, int64_t to, int64_t cols, const F* u, int64_t u_term, const F* v,
                     int64_t v_stride, int64_t v_term, F* out) {
        if (n == 2) outer_sums<2>(from, to, cols, p.N, u, stride, u_term, v, v_stride, v_term, out);
        else outer_sums<1>(from, to, cols, p.N, u, stride, u_term, v, v_stride, v_term, out);
    };
    if (p.w1) outer(terms, first, r1, C, partial.dhidden, R, saved.pool(0), p.saved_size(), C, (F*)p.dw1);
    if (p.channel) outer(gates, c0, c1, R, partial.dlogit, C, partial.hidden, stride, R, (F*)p.dw2);
    for (int64_t r = first; p.db1 && r < r1; ++r)
        ((F*)p.db1)[r] = sum(partial.dhidden, r) + (terms == 2 ? sum(partial.dhidden, R + r) : 0);
    for (int64_t c = c0; p.db2 && c < c1; ++c)
        ((F*)p.db2)[c] =
            gates == 2 ? sum(partial.dlogit, c) + sum(partial.dlogit, C + c) : terms * sum(partial.dlogit, c);
    if (!p.spatial || last < R + C) return;
    for (int64_t i = 0; i < 2 * p.k * p.k; ++i) ((F*)p.dws)[p.tap(i)] = sum(partial.dws, i);
    if (p.dbs) *(F*)p.dbs = sum(partial.dbs, 0);
}

}  // namespace
