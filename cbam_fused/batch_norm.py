"""BatchNorm after the spatial convolution: with batch statistics, or folded into the convolution."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from ._ops import ops
from .hooks import has_own_call
from .ops import autograd
from .tensors import Parameters


def is_plain(norm: nn.Module | None) -> TypeGuard[nn.BatchNorm2d | nn.SyncBatchNorm | None]:
    """Whether norm is BatchNorm or None; a subclass with its own forward, such as an activation, is another module."""
    if norm is None:
        return True
    forwards = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
    return (
        isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        and type(norm).forward in forwards
        and not has_own_call(norm)
    )


def uses_batch_statistics(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> bool:
    return norm.training or norm.running_mean is None


def by_batch(
    x: Tensor,
    params: Parameters,
    norm: nn.BatchNorm2d,
    residual: Tensor | None,
    relu: bool,
    code: int,
    backend: str,
) -> Tensor:
    """cbam() with batch statistics; updates the running statistics as nn.BatchNorm2d."""
    N, _, H, W = x.shape
    count = N * H * W
    if count == 1:  # an empty batch uses the reference
        raise ValueError(f"x must have more than one pixel for batch statistics, got shape {tuple(x.shape)}")
    args = (x, *params, norm.weight, norm.bias, residual, relu, code, norm.eps)
    if torch.compiler.is_exporting():
        y, mean, variance = ops.cbam_batch_norm(*args)
    else:
        y, mean, variance = autograd.apply(autograd.CbamBatchNorm, *args, backend)
    if norm.training and norm.track_running_stats:
        with torch.no_grad():
            share: float | Tensor = norm.momentum or 0.0
            if norm.num_batches_tracked is not None:
                # += would set an attribute, which compiled checkpointing does not support.
                norm.num_batches_tracked.add_(1)
                share = 1 / norm.num_batches_tracked if norm.momentum is None else share
            unbiased = variance * (count / (count - 1))
            for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                if running is not None:
                    running += share * (value - running)
    return y


def fold(ws: Tensor, bs: Tensor | None, norm: nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and bias of the convolution with BatchNorm's running statistics folded in, differentiable."""
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias, bs)
    mean, var, weight, bias, bs = (None if t is None else t.to(dtype) for t in parts)
    assert mean is not None and var is not None  # without them batch statistics are used
    scale = (var + norm.eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    offset = (-mean if bs is None else bs - mean) * scale
    one_map = ws.stride(1) == 0  # expanded, as the result
    ws = (ws[:, :1] if one_map else ws).to(dtype) * scale.view(1, 1, 1, 1)
    return ws.expand(-1, 2, -1, -1) if one_map else ws, offset if bias is None else offset + bias
