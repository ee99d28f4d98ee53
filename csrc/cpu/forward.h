// Forward over a range of images: the steps of the mathematics in order, on buffers small enough that an image is
// still in cache when the next step reads it. It reads x three times (statistics per channel, statistics per pixel,
// product), all but the first from cache where an image fits, and writes y once.
#pragma once

#include "gates.h"
#include "stats.h"

namespace {

// y = relu(x g s + residual) of one image, each part only where asked for.
template <class T, bool channels_last, class F = Acc<T>>
void apply_gates(const Problem& p, int64_t image, const F* g, const F* s) {
    const int64_t C = p.C, HW = p.HW(), at = image * C * HW;
    const T *x = (const T*)p.x + at, *residual = p.residual ? (const T*)p.residual + at : nullptr;
    if (channels_last) scale(x, HW, C, s, g, residual, p.relu, (T*)p.y + at);
    else scale(x, C, HW, g, s, residual, p.relu, (T*)p.y + at);
}

template <class T, bool channels_last> void forward(const Problem& p, int64_t first, int64_t last, void* base) {
    using F = Acc<T>;
    const int64_t C = p.C, HW = p.HW();
    const Scratch<F> scratch(p, base);
    each_part(last - first, group_size(p, sizeof(T), sizeof(F)), [&](int64_t i, int64_t end) {
        const int count = int(end - i);
        Saved<F> saved[kMaxGroup];
        for (int j = 0; j < count; ++j) {
            const Saved<F>& v = saved[j] = Saved<F>(p, first + i + j);
            const T* x = (const T*)p.x + (first + i + j) * C * HW;
            if (!p.w1) {
                for (F* absent : {v.mean_hw, v.max_hw}) fill(absent, C, F(0));
                fill(v.g, C, F(1));
                fill(v.argmax_hw, C, 0);
            } else if (channels_last) col_stats<T, false>(x, HW, C, nullptr, v.mean_hw, v.max_hw, v.argmax_hw);
            else row_stats<T, false>(x, C, HW, nullptr, v.mean_hw, v.max_hw, v.argmax_hw);
        }
        if (p.w1) channel_gate(p, count, saved, scratch);
        for (int j = 0; j < count; ++j) {
            const Saved<F>& v = saved[j];
            const T* x = (const T*)p.x + (first + i + j) * C * HW;
            if (p.ws) {
                if (channels_last) row_stats<T, true>(x, HW, C, v.g, v.mean_c, v.max_c, v.argmax_c);
                else col_stats<T, true>(x, C, HW, v.g, v.mean_c, v.max_c, v.argmax_c);
                spatial_logits(p, v, scratch);
                if (p.y) sigmoid(v.s, HW);
            } else {
                for (F* absent : {v.mean_c, v.max_c}) fill(absent, HW, F(0));
                fill(v.s, HW, F(1));
                fill(v.argmax_c, HW, 0);
            }
            if (p.y) apply_gates<T, channels_last>(p, first + i + j, v.g, v.s);
        }
    });
}

template <class T, bool channels_last> void apply(const Problem& p, int64_t first, int64_t last, void*) {
    using F = Acc<T>;
    for (int64_t n = first; n < last; ++n)
        apply_gates<T, channels_last>(p, n, Saved<F>(p, n).g, (const F*)p.s + n * p.HW());
}

}  // namespace
