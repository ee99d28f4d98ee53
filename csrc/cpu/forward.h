// Forward: the steps of the mathematics in order, each on buffers small enough that an image that is not split is still
// in cache when the next step reads it. It reads x three times (statistics per channel, statistics per pixel, product),
// all but the first from cache where an image fits, and writes y once.
#pragma once

#include "gates.h"
#include "passes/pool.h"

namespace {

using cbam::Steps;

// y = relu(x g s + residual) of some pixels of one image, each part only where asked for.
template <class T, bool channels_last, class F = Acc<T>>
void apply_gates(const Problem& p, int64_t image, Range pixels, const F* g, const F* s) {
    const int64_t C = p.C, HW = p.HW(), at = image * C * HW + pixels.first * (channels_last ? C : 1);
    const T *x = (const T*)p.x + at, *add = p.residual ? (const T*)p.residual + at : nullptr;
    T* y = (T*)p.y + at;
    s += pixels.first;
    auto run = [&]<bool residual, bool relu>() {
        if (channels_last) scale<residual, relu>(x, pixels.size(), C, C, s, g, add, y);
        else scale<residual, relu>(x, C, pixels.size(), HW, g, s, add, y);
    };
    if (add) p.relu ? run.template operator()<true, true>() : run.template operator()<true, false>();
    else p.relu ? run.template operator()<false, true>() : run.template operator()<false, false>();
}

// a and m.
template <class T, bool channels_last> void pool_pixels(const Problem& p, const Share& share) {
    const int64_t C = p.C, HW = p.HW();
    const Range part = channels_of<T, channels_last>(p, share);
    const int64_t c = part.first;
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<Acc<T>> v(p, n);
        const T* x = (const T*)p.x + n * C * HW;
        auto *mean = v.mean_hw + c, *max = v.max_hw + c;
        int32_t* arg = v.argmax_hw + c;
        if (channels_last) col_stats<T, false>(x + c, HW, part.size(), C, nullptr, mean, max, arg);
        else row_stats<T, false>(x + c * HW, part.size(), HW, nullptr, mean, max, arg);
    }
}

// A and M, framed for the convolution.
template <class T, bool channels_last> void pool_channels(const Problem& p, const Share& share) {
    const int64_t C = p.C, HW = p.HW();
    const Range rows = part_of(share, p.H), part = rows.times(p.W);
    const int64_t k = part.first;
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<Acc<T>> v(p, n);
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        const T* x = (const T*)p.x + n * C * HW;
        auto *mean = v.mean_c + k, *max = v.max_c + k;
        int32_t* arg = v.argmax_c + k;
        if (channels_last) row_stats<T, true>(x + k * C, part.size(), C, v.g, mean, max, arg);
        else col_stats<T, true>(x + k, C, part.size(), HW, v.g, mean, max, arg);
        frame(scratch.map, v.mean_c, rows, scratch.framed[0]);
        frame(scratch.map, v.max_c, rows, scratch.framed[1]);
    }
}

// s, and y where it is asked for: of a part of the pixels both, without waiting for the others.
template <class T, bool channels_last> void spatial_gate(const Problem& p, const Share& share) {
    const Range rows = part_of(share, p.H), part = rows.times(p.W);
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<Acc<T>> v(p, n);
        if (p.ws) {
            spatial_logits(p, rows, v, Scratch<Acc<T>>(p, share.scratch_of(n)));
            if (p.y) sigmoid(v.s + part.first, part.size());
        }
        if (p.y) apply_gates<T, channels_last>(p, n, part, v.g, v.s);
    }
}

// What is saved of a gate that is absent.
template <class F> void absent_gates(const Problem& p, const Share& share) {
    auto absent = [](int64_t size, F* mean, F* max, F* gate, int32_t* arg) {
        for (F* pool : {mean, max}) fill(pool, size, F(0));
        fill(gate, size, F(1));
        fill(arg, size, 0);
    };
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<F> v(p, n);
        if (!p.w1) absent(p.C, v.mean_hw, v.max_hw, v.g, v.argmax_hw);
        if (!p.ws) absent(p.HW(), v.mean_c, v.max_c, v.s, v.argmax_c);
    }
}

template <class T, bool channels_last> Steps forward_steps(const Problem& p) {
    using F = Acc<T>;
    const int64_t image = p.C * p.HW();
    Steps steps;
    if (!p.w1 || !p.ws) steps.add(absent_gates<F>, 0);
    if (p.w1) {
        steps.add(pool_pixels<T, channels_last>, image);
        steps.add(hidden_layer<F>, p.R * p.C);
        steps.add(channel_gate<F>, p.R * p.C);
    }
    if (p.ws) steps.add(pool_channels<T, channels_last>, image);
    if (p.ws || p.y) steps.add(spatial_gate<T, channels_last>, (p.y ? image : 0) + (p.ws ? convolution_work(p) : 0));
    return steps;
}

template <class T, bool channels_last> void apply(const Problem& p, const Share& share) {
    using F = Acc<T>;
    for (int64_t n = share.first; n < share.last; ++n)
        apply_gates<T, channels_last>(p, n, part_of(share, p.HW()), Saved<F>(p, n).g, (const F*)p.s + n * p.HW());
}

template <class T, bool channels_last> Steps apply_steps(const Problem& p) {
    Steps steps;
    steps.add(apply<T, channels_last>, p.C * p.HW());
    return steps;
}

}  // namespace
