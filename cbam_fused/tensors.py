"""Types, strides and contents of the tensors that operators take and return."""

import torch
from torch import Tensor

# Of an image, for the Triton kernels: the places in it, and in its row of saved, are then 32-bit numbers.
TRITON_ELEMENTS = 2**29


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Which of the two layouts the kernels use for x; csrc/binding/arguments.h has the same rule."""
    return not x.is_contiguous() and x.stride(1) < x.stride(3)


def dense_like(x: Tensor) -> Tensor:
    """Room for a tensor like x, in the layout that the kernels use for x."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=torch.preserve_format if x.is_contiguous(memory_format=layout) else layout)


def saved_gate(saved: Tensor, x: Tensor) -> Tensor:
    """g, (N, C, 1, 1), in saved."""
    C = x.shape[1]
    return saved[:, 2 * C : 3 * C, None, None]


def saved_logits(saved: Tensor, x: Tensor) -> Tensor:
    """The convolution's result, (N, 1, H, W), in what attend saved."""
    N, _, H, W = x.shape
    return saved[:, -H * W :].unflatten(1, (1, H, W))
