// The steps of the forward. Buffers are small, so an unsplit image is still in the cache when the next step reads it.
// The forward reads x three times (statistics per channel, statistics per pixel, product), the second and third time
// from the cache if an image fits, and writes y once.
#pragma once

#include "gates.h"
#include "passes/pool.h"

namespace {

using cbam::Steps;

// y = relu(x g s + residual) for some pixels of an image; residual and ReLU are optional.
template <class T, bool channels_last, class F = Acc<T>>
void apply_gates(const Problem& p, int64_t image, Range pixels, const Gates<F>& gates) {
    const F *g = gates.g, *s = gates.s + pixels.first;
    const int64_t C = p.C, HW = p.HW(), at = image * C * HW + pixels.first * (channels_last ? C : 1);
    const T *x = (const T*)p.x + at, *add = p.residual ? (const T*)p.residual + at : nullptr;
    T* y = (T*)p.y + at;
    auto* pass = p.relu ? scale<false, true, T> : scale<false, false, T>;
    if (add) pass = p.relu ? scale<true, true, T> : scale<true, false, T>;
    if (channels_last) pass(x, pixels.size(), C, C, s, g, add, y);
    else pass(x, C, pixels.size(), HW, g, s, add, y);
}

// a and m, if present.
template <class T, bool channels_last> void pool_pixels(const Problem& p, const Share& share) {
    const int64_t C = p.C, HW = p.HW();
    const Range part = channels_of<T, channels_last>(p, share);
    const int64_t c = part.first;
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<Acc<T>> v(p, n);
        const T* x = (const T*)p.x + n * C * HW;
        // The maximum needs the mean, which shows NaN.
        auto* mean = (v.mean_hw ? v.mean_hw : Scratch<Acc<T>>(p, share.scratch_of(n)).da) + c;
        auto pool = [&]<bool with_max>(auto* max, int32_t* arg) {
            if (channels_last) col_stats<T, false, with_max>(x + c, HW, part.size(), C, nullptr, mean, max, arg);
            else row_stats<T, false, with_max>(x + c * HW, part.size(), HW, nullptr, mean, max, arg);
        };
        if (v.max_hw) pool.template operator()<true>(v.max_hw + c, v.argmax_hw + c);
        else pool.template operator()<false>(mean, nullptr);
        for (int64_t i = 0; p.switches.mean_of_pools && i < part.size(); ++i) mean[i] = (mean[i] + v.max_hw[c + i]) / 2;
    }
}

// A and M, framed for the convolution, and its weights if they are in another order.
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
        const auto* g = p.channel ? v.g : scratch.ones;
        if (channels_last) row_stats<T, true, true>(x + k * C, part.size(), C, g, mean, max, arg);
        else col_stats<T, true, true>(x + k, C, part.size(), HW, g, mean, max, arg);
        frame(scratch.map, v.mean_c, rows, scratch.framed[0]);
        frame(scratch.map, v.max_c, rows, scratch.framed[1]);
        for (int64_t i = 0; p.ws_channels_last && share.part == 0 && i < 2 * p.k * p.k; ++i)
            scratch.kernel[i] = ((const Acc<T>*)p.ws)[p.tap(i)];
    }
}

// s, and y if wanted, for a part of the pixels, without waiting for the others.
template <class T, bool channels_last> void spatial_gate(const Problem& p, const Share& share) {
    const Range rows = part_of(share, p.H), part = rows.times(p.W);
    for (int64_t n = share.first; n < share.last; ++n) {
        const Saved<Acc<T>> v(p, n);
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        if (p.spatial) {
            spatial_logits(p, rows, v, scratch);
            if (p.y) gate(p.switches.hard_spatial, v.s + part.first, part.size());
        }
        if (p.y) apply_gates<T, channels_last>(p, n, part, Gates(p, n, scratch));
    }
}

template <class T, bool channels_last> Steps forward_steps(const Problem& p) {
    using F = Acc<T>;
    const int64_t image = p.C * p.HW();
    Steps steps;
    if (!p.channel || (p.y && !p.spatial)) steps.add(absent_gate<F>, 0);
    if (p.channel) {
        steps.add(pool_pixels<T, channels_last>, image);
        steps.add(hidden_layer<F>, p.R * p.C);
        steps.add(channel_gate<F>, p.R * p.C);
    }
    if (p.spatial) steps.add(pool_channels<T, channels_last>, image);
    if (p.spatial || p.y)
        steps.add(spatial_gate<T, channels_last>, (p.y ? image : 0) + (p.spatial ? convolution_work(p) : 0));
    return steps;
}

template <class T, bool channels_last> void apply(const Problem& p, const Share& share) {
    for (int64_t n = share.first; n < share.last; ++n) {
        const Scratch<Acc<T>> scratch(p, share.scratch_of(n));
        apply_gates<T, channels_last>(p, n, part_of(share, p.HW()), Gates(p, n, scratch));
    }
}

template <class T, bool channels_last> Steps apply_steps(const Problem& p) {
    Steps steps;
    if (!p.channel) steps.add(absent_gate<Acc<T>>, 0);
    steps.add(apply<T, channels_last>, p.C * p.HW());
    return steps;
}

}  // namespace
