"""The sigmoids of the gates and the activations of the MLP, forward and backward."""

import triton
import triton.language as tl

SIXTH = tl.constexpr(0.1666666716337204)  # 1 / 6 in float32, as in PyTorch's backward of the hard sigmoid
RELU, LEAKY_RELU, SILU, GELU = (tl.constexpr(i) for i in range(4))  # in the order of variants/config.py
SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def sigmoid(logit, HARD: tl.constexpr):
    """sigmoid(logit); HARD: min(max(logit / 6 + 1 / 2, 0), 1). NaN stays NaN, because comparisons with it are false."""
    if HARD:
        shifted = logit + 3
        return tl.where(shifted < 0, 0, tl.where(shifted > 6, 6, shifted)) / 6
    else:
        return tl.sigmoid(logit)


@triton.jit
def sigmoid_backward(gate, gradient, HARD: tl.constexpr):
    """Gradient of the logit, from the result of the sigmoid and its gradient."""
    if HARD:
        return tl.where((gate > 0) & (gate < 1), gradient * SIXTH, 0)
    else:
        return gradient * gate * (1 - gate)


@triton.jit
def activation(value, ACT: tl.constexpr):
    if ACT == RELU:
        return tl.where(value < 0, 0, value)
    elif ACT == LEAKY_RELU:
        return tl.where(value > 0, value, value * 0.01)
    elif ACT == SILU:
        return value / (1 + tl.exp(-value))
    else:
        return value * (0.5 * (1 + tl.erf(value * SQRT_HALF)))


@triton.jit
def activation_backward(value, gradient, ACT: tl.constexpr):
    """Gradient of value, from the gradient of activation(value)."""
    if ACT == RELU:
        return tl.where(value <= 0, 0, gradient)
    elif ACT == LEAKY_RELU:
        return tl.where(value > 0, gradient, gradient * 0.01)
    elif ACT == SILU:
        s = 1 / (1 + tl.exp(-value))
        return gradient * (s * (1 + value * (1 - s)))
    else:
        cdf = 0.5 * (1 + tl.erf(value * SQRT_HALF))
        return gradient * (cdf + value * (tl.exp(value * value * -0.5) * INV_SQRT_2PI))
