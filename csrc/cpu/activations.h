// The gates, in place, and the activations of the MLP.
#pragma once

#include <math.h>

#include <initializer_list>

#include "../problem.h"
#include "passes/scale_and_dots.h"

namespace {

// e^x for |x| <= 87 to about one unit in the last place: x = n ln 2 + r, e^x = 2^n e^r, e^r by its series to r^7. NaN
// stays NaN: 2^n is then some number, multiplied by e^r = NaN.
inline Vec<float> exp_bounded(Vec<float> x) {
    const Vec<float> magic = broadcast<Vec<float>>(0x1.8p23f);  // adding it rounds to an integer in the low bits
    const Vec<float> shifted = x * 1.44269504f + magic;
    const Vec<float> n = shifted - magic;
    const Vec<float> r = (x - n * 0x1.63p-1f) + n * 2.12194440e-4f;  // ln 2 = 0x1.63p-1 - 2.1219444e-4
    Vec<float> e = broadcast<Vec<float>>(1.f / 5040);
    for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f}) e = e * r + c;
    const IndexVec<float> exponent = (bit_cast<IndexVec<float>>(shifted) << 23) + (127 << 23);
    return e * bit_cast<Vec<float>>(exponent);
}

inline void sigmoid(float* v, int64_t n) {
    each_vector<float>(n, [&](int64_t i, auto lanes) {
        const Vec<float> x = load(v + i, lanes);
        // Comparisons with NaN are false, so NaN is kept.
        const Vec<float> bounded = x > 87.f    ? broadcast<Vec<float>>(87.f)
                                   : x < -87.f ? broadcast<Vec<float>>(-87.f)
                                               : x;
        const Vec<float> s = 1.f / (1.f + exp_bounded(-bounded));
        store(v + i, x < -87.f ? Vec<float>{} : s, lanes);
    });
}

inline void sigmoid(double* v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) v[i] = 1 / (1 + exp(-v[i]));
}

// The sigmoid, or min(max(v / 6 + 1 / 2, 0), 1); NaN stays NaN.
template <class F> void gate(bool hard, F* v, int64_t n) {
    if (!hard) return sigmoid(v, n);
    for (int64_t i = 0; i < n; ++i) {
        const F x = v[i] + 3;
        v[i] = (x < 0 ? 0 : x > 6 ? 6 : x) / 6;
    }
}

// The gradient before a gate of this value, from the gradient d after it. PyTorch uses 1 / 6 in float for every type.
template <class F> F through_gate(bool hard, F value, F d) {
    if (hard) return value > 0 && value < 1 ? d * F(1.f / 6) : 0;
    return d * (value * (1 - value));
}

// out[i] = f(i) for i < n, with f chosen by the activation. Each activation has its own loop.
template <class F, class Relu, class Leaky, class Silu, class Gelu>
void by_activation(cbam::Activation activation, int64_t n, F* out, Relu relu, Leaky leaky, Silu silu, Gelu gelu) {
    auto each = [&](auto f) {
        for (int64_t i = 0; i < n; ++i) out[i] = f(i);
    };
    switch (activation) {
        case cbam::Activation::leaky_relu: return each(leaky);
        case cbam::Activation::silu: return each(silu);
        case cbam::Activation::gelu: return each(gelu);
        default: return each(relu);
    }
}

// out = act(v).
template <class F> CBAM_PASS void activate(cbam::Activation activation, const F* v, int64_t n, F* out) {
    by_activation(
        activation, n, out, [&](int64_t i) { return v[i] < 0 ? 0 : v[i]; },
        [&](int64_t i) { return v[i] > 0 ? v[i] : v[i] * F(0.01); }, [&](int64_t i) { return v[i] / (1 + exp(-v[i])); },
        [&](int64_t i) { return v[i] * ((1 + erf(v[i] * F(M_SQRT1_2))) / 2); });
}

// The gradient before the activation of v, from the gradient d after it, into out.
template <class F>
CBAM_PASS void through_activation(cbam::Activation activation, const F* v, const F* d, int64_t n, F* out) {
    by_activation(
        activation, n, out, [&](int64_t i) { return v[i] <= 0 ? 0 : d[i]; },
        [&](int64_t i) { return v[i] > 0 ? d[i] : d[i] * F(0.01); },
        [&](int64_t i) {
            const F s = 1 / (1 + exp(-v[i]));
            return d[i] * (s * (1 + v[i] * (1 - s)));
        },
        [&](int64_t i) {
            const F cdf = (1 + erf(v[i] * F(M_SQRT1_2))) / 2;
            const F pdf = exp(v[i] * v[i] / -2) * F(M_2_SQRTPI * M_SQRT1_2 / 2);
            return d[i] * (cdf + v[i] * pdf);
        });
}

}  // namespace
