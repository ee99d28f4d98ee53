// The functions of single numbers that switches choose: gates, and activations within the MLP. Torch-free.
#pragma once

#include <math.h>

#include "problem.h"

namespace {  // the CPU's kernels are compiled once for each instruction set

// min(max(v / 6 + 1 / 2, 0), 1); comparisons are false for NaN, which stays.
template <class F> CBAM_ANYWHERE F hard_sigmoid(F v) {
    const F x = v + 3;
    return (x < 0 ? 0 : x > 6 ? 6 : x) / 6;
}

// The gradient d of a gate that has this value, taken before it. PyTorch has a float's sixth in every type.
template <class F> CBAM_ANYWHERE F through_gate(bool hard, F value, F d) {
    if (hard) return value > 0 && value < 1 ? d * F(1.f / 6) : 0;
    return d * (value * (1 - value));
}

template <class F> CBAM_ANYWHERE F activate(cbam::Activation activation, F v) {
    switch (activation) {
        case cbam::Activation::leaky_relu: return v > 0 ? v : v * F(0.01);
        case cbam::Activation::silu: return v / (1 + exp(-v));
        case cbam::Activation::gelu: return v * ((1 + erf(v * F(M_SQRT1_2))) / 2);
        default: return v < 0 ? 0 : v;
    }
}

// The gradient d behind the activation of v, taken before it.
template <class F> CBAM_ANYWHERE F through_activation(cbam::Activation activation, F v, F d) {
    switch (activation) {
        case cbam::Activation::leaky_relu: return v > 0 ? d : d * F(0.01);
        case cbam::Activation::silu: {
            const F s = 1 / (1 + exp(-v));
            return d * (s * (1 + v * (1 - s)));
        }
        case cbam::Activation::gelu: {
            const F cdf = (1 + erf(v * F(M_SQRT1_2))) / 2, pdf = exp(v * v / -2) * F(M_2_SQRTPI * M_SQRT1_2 / 2);
            return d * (cdf + v * pdf);
        }
        default: return v <= 0 ? 0 : d;
    }
}

}  // namespace
