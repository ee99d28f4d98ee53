// The gates of a vector of logits, in place, and the activations of the MLP.
#pragma once

#include <initializer_list>

#include "../activations.h"
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

template <class F> void gate(bool hard, F* v, int64_t n) {
    if (!hard) return sigmoid(v, n);
    for (int64_t i = 0; i < n; ++i) v[i] = hard_sigmoid(v[i]);
}

// body<activation>(), so that each loop has no branch.
template <class Body> void with_activation(cbam::Activation activation, Body body) {
    using cbam::Activation;
    switch (activation) {
        case Activation::leaky_relu: return body.template operator()<Activation::leaky_relu>();
        case Activation::silu: return body.template operator()<Activation::silu>();
        case Activation::gelu: return body.template operator()<Activation::gelu>();
        default: return body.template operator()<Activation::relu>();
    }
}

// out = act(v).
template <class F> CBAM_PASS void activate(cbam::Activation activation, const F* v, int64_t n, F* out) {
    with_activation(activation, [&]<cbam::Activation act>() {
        for (int64_t i = 0; i < n; ++i) out[i] = activate(act, v[i]);
    });
}

// The gradient before the activation of v, from the gradient d after it, into out.
template <class F>
CBAM_PASS void through_activation(cbam::Activation activation, const F* v, const F* d, int64_t n, F* out) {
    with_activation(activation, [&]<cbam::Activation act>() {
        for (int64_t i = 0; i < n; ++i) out[i] = through_activation(act, v[i], d[i]);
    });
}

}  // namespace
