// Backward over a range of images. It reads x twice (products with dy, sums through the mean map), dy twice (products,
// dx) and writes dx once; all but the first read of each come from cache where an image fits.
#pragma once

#include "gates.h"
#include "matrix_backward.h"
#include "ties.h"

namespace {

template <class F> const F* spatial_gate_of(const Problem& p, const Saved<F>& saved, int64_t image) {
    return p.s ? (const F*)p.s + image * p.HW() : saved.s;
}

// dg[c] = sum over pixels of s x dy and ds[h, w] = sum over channels of g x dy, of one image. Where the forward ended
// in a ReLU, dy behind it goes to masked.
template <class T, bool channels_last, class F = Acc<T>>
void gate_products(const Problem& p, int64_t image, T* masked, F* dg, F* ds) {
    const int64_t C = p.C, HW = p.HW(), at = image * C * HW;
    const T *x = (const T*)p.x + at, *dy = (const T*)p.dy + at, *y = p.relu ? (const T*)p.y + at : nullptr;
    const Saved<F> v(p, image);
    const F* s = spatial_gate_of(p, v, image);
    if (channels_last) products(x, dy, y, masked + at, HW, C, s, v.g, ds, dg);
    else products(x, dy, y, masked + at, C, HW, v.g, s, dg, ds);
}

template <class T, bool channels_last> void products_of_images(const Problem& p, int64_t first, int64_t last, void*) {
    using F = Acc<T>;
    for (int64_t n = first; n < last; ++n)
        gate_products<T, channels_last>(p, n, (T*)p.dresidual, (F*)p.dg + n * p.C, (F*)p.ds + n * p.HW());
}

// Row n of a (N, size) matrix, or zeros where there is none.
template <class F> void copy_or_zero(const F* matrix, int64_t n, int64_t size, F* to) {
    if (matrix) __builtin_memcpy(to, matrix + n * size, size * sizeof(F));
    else fill(to, size, F(0));
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
        auto maxima = [&](int j) {
            const Saved<F>& v = saved[j];
            const T* x = (const T*)p.x + (first + i + j) * C * HW;
            const int64_t rows = channels_last ? HW : C, cols = channels_last ? C : HW;
            return Maxima<T, channels_last>{x, rows, cols, v.g, v.max_hw, v.max_c};
        };
        for (int j = 0; j < count; ++j) {
            const int64_t n = first + i + j;
            const Saved<F>& v = saved[j] = Saved<F>(p, n);
            partial[j] = Partial<F>(p, n);
            const T* x = (const T*)p.x + n * C * HW;
            F *t = scratch.t[j], *routed = scratch.routed[j], *direct = scratch.da[j], *through_mean = scratch.dm[j];
            // dg has three parts: the direct one, and what comes through the two maps.
            if (p.given) {
                copy_or_zero((const F*)p.dg, n, C, direct);
                copy_or_zero((const F*)p.ds, n, HW, t);
            } else {
                gate_products<T, channels_last>(p, n, masked, direct, t);
                for (int64_t k = 0; k < HW; ++k) t[k] *= v.s[k] * (1 - v.s[k]);
            }
            if (p.ws) {
                spatial_logits_backward(p, v, partial[j], scratch, t, routed);
                if (channels_last) col_dots(x, HW, C, 1, &t, &through_mean);
                else row_dots(x, C, HW, 1, &t, &through_mean);
            } else {
                for (F* absent : {t, routed}) fill(absent, HW, F(0));
                fill(through_mean, C, F(0));
            }
            // dg times g is what is needed, and saves reading the maxima from x, since max_c = g x there.
            double* dg = scratch.dg[j];
            for (int64_t c = 0; c < C; ++c) dg[c] = (double(direct[c]) + through_mean[c]) * v.g[c];
            if (p.even_ties) {
                F *count_hw = scratch.count_hw[j], *count_c = scratch.count_c, *share = scratch.share;
                maxima(j).count(count_hw, count_c);
                for (int64_t k = 0; p.ws && k < HW; ++k) share[k] = (routed[k] /= count_c[k]) * v.max_c[k];
                if (p.ws) maxima(j).add_shares(share, dg);
            } else if (p.ws) {
                for (int64_t k = 0; k < HW; ++k) {
                    dg[v.argmax_c[k]] += double(routed[k]) * v.max_c[k];
                    routed[k] *= v.g[v.argmax_c[k]];
                }
            }
            if (!p.w1)
                for (F* absent : {scratch.da[j], scratch.dm[j]}) fill(absent, C, F(0));
        }
        if (p.w1) channel_gate_backward(p, count, saved, partial, scratch);
        for (int j = 0; j < count; ++j) {
            const int64_t n = first + i + j, at = n * C * HW;
            const Saved<F>& v = saved[j];
            const T* z = p.dy ? (p.relu ? masked : (const T*)p.dy) + at : nullptr;
            T* dx = (T*)p.dx + at;
            const F *s = spatial_gate_of(p, v, n), *t = scratch.t[j], *routed = scratch.routed[j];
            F *da = scratch.da[j], *dm = scratch.dm[j];
            if (p.even_ties) {
                for (int64_t c = 0; p.w1 && c < C; ++c) dm[c] /= scratch.count_hw[j][c];
                maxima(j).input_gradient(z, s, t, routed, da, dm, dx);
            } else if (channels_last)
                input_gradient<T, true>(z, HW, C, s, t, v.g, da, v.argmax_hw, dm, v.argmax_c, routed, dx);
            else input_gradient<T, false>(z, C, HW, s, t, v.g, da, v.argmax_c, routed, v.argmax_hw, dm, dx);
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
    if (p.w1) {
        outer_sums<2>(first, r1, C, p.N, partial.dhidden_mean, stride, R, saved.mean_hw, p.saved_size(), C, (F*)p.dw1);
        outer_sums<1>(c0, c1, R, p.N, partial.dlogit, stride, 0, partial.hidden, stride, 0, (F*)p.dw2);
    }
    for (int64_t r = first; p.db1 && r < r1; ++r)
        ((F*)p.db1)[r] = sum(partial.dhidden_mean, r) + sum(partial.dhidden_max, r);
    for (int64_t c = c0; p.db2 && c < c1; ++c) ((F*)p.db2)[c] = 2 * sum(partial.dlogit, c);
    if (!p.ws || last < R + C) return;
    for (int64_t i = 0; i < 2 * p.k * p.k; ++i) ((F*)p.dws)[i] = sum(partial.dws, i);
    if (p.dbs) *(F*)p.dbs = sum(partial.dbs, 0);
}

}  // namespace
