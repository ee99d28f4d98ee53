"""Dtypes, strides and layout of the operators' tensors."""

from typing import TypeAlias

import torch
from torch import Tensor

from .variants.config import GATE_TERMS, MEAN_OF_POOLS, NO_AVG, NO_MAX, SINGLE

# w1, w2, ws, b1, b2, bs, in the order of every signature; None for absent parameters.
_Optional = Tensor | None
Parameters: TypeAlias = tuple[_Optional, _Optional, _Optional, _Optional, _Optional, _Optional]

# Most elements of an image in the Triton kernels: indices into it and into its row of saved then fit in 32 bits.
TRITON_ELEMENTS = 2**29


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether the kernels use channels_last for x; csrc/binding/arguments.h has the same rule."""
    return not x.is_contiguous() and x.stride(1) < x.stride(3)


def dense_like(x: Tensor) -> Tensor:
    """An uninitialised tensor like x, in the layout that the kernels use for x."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=torch.preserve_format if x.is_contiguous(memory_format=layout) else layout)


def row_sizes(x: Tensor, w1: Tensor | None, ws: Tensor | None, switches: int) -> tuple[int, int]:
    """Elements per image in saved and in index. csrc/problem.h has the same rule."""
    C, P = x.shape[1], x.shape[2] * x.shape[3]
    pools = _pools(switches)
    channel, spatial = w1 is not None, ws is not None
    hidden = 0 if w1 is None or switches & SINGLE else terms(switches) * w1.shape[0]
    of_channels = C * (pools + 1 + (2 if switches & GATE_TERMS else 0))
    places = C if channel and not switches & NO_MAX else 0
    return channel * of_channels + hidden + spatial * 3 * P, places + spatial * P


def terms(switches: int) -> int:
    """How many times the MLP runs."""
    return 1 if _pools(switches) == 1 or switches & MEAN_OF_POOLS else 2


def _pools(switches: int) -> int:
    return 2 - bool(switches & NO_AVG) - bool(switches & NO_MAX)


def saved_gate(saved: Tensor, x: Tensor, switches: int) -> Tensor:
    """g, (N, C, 1, 1), in saved: after the pools."""
    C = x.shape[1]
    first = C * _pools(switches)
    return saved[:, first : first + C, None, None]


def saved_logits(saved: Tensor, x: Tensor) -> Tensor:
    """The convolution's result, (N, 1, H, W), in saved."""
    N, _, H, W = x.shape
    return saved[:, -H * W :].unflatten(1, (1, H, W))
