"""The sigmoids of the gates and the activations of the MLP, and their derivatives."""

import triton
import triton.language as tl

SIXTH = tl.constexpr(0.1666666716337204)  # that of float32, which PyTorch's derivative of the hard sigmoid has
RELU, LEAKY_RELU, SILU, GELU = (tl.constexpr(i) for i in range(4))  # in the order of variants/config.py
ROOT_HALF, PEAK = tl.constexpr(0.7071067811865476), tl.constexpr(0.3989422804014327)  # 1 / sqrt(2), 1 / sqrt(2 pi)


@triton.jit
def gate_of(logit, HARD: tl.constexpr):
    """sigmoid(logit), or min(max(logit / 6 + 1 / 2, 0), 1); comparisons are false for NaN, which stays."""
    if HARD:
        shifted = logit + 3
        return tl.where(shifted < 0, 0, tl.where(shifted > 6, 6, shifted)) / 6
    else:
        return tl.sigmoid(logit)


@triton.jit
def through_gate(value, gradient, HARD: tl.constexpr):
    """The gradient of a gate that has this value, taken before it."""
    if HARD:
        return tl.where((value > 0) & (value < 1), gradient * SIXTH, 0)
    else:
        return gradient * value * (1 - value)


@triton.jit
def activate(value, ACT: tl.constexpr):
    if ACT == RELU:
        return tl.where(value < 0, 0, value)
    elif ACT == LEAKY_RELU:
        return tl.where(value > 0, value, value * 0.01)
    elif ACT == SILU:
        return value / (1 + tl.exp(-value))
    else:
        return value * (0.5 * (1 + tl.erf(value * ROOT_HALF)))


@triton.jit
def through_activation(value, gradient, ACT: tl.constexpr):
    """The gradient behind the activation of value, taken before it."""
    if ACT == RELU:
        return tl.where(value <= 0, 0, gradient)
    elif ACT == LEAKY_RELU:
        return tl.where(value > 0, gradient, gradient * 0.01)
    elif ACT == SILU:
        s = 1 / (1 + tl.exp(-value))
        return gradient * (s * (1 + value * (1 - s)))
    else:
        cdf = 0.5 * (1 + tl.erf(value * ROOT_HALF))
        return gradient * (cdf + value * (tl.exp(value * value * -0.5) * PEAK))
