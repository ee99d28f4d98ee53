"""The raw operators of ops/registry.py: the launches in order, for each group of images."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..tensors import TRITON_ELEMENTS, accumulation_dtype, dense_like, is_channels_last, row_sizes
from ..variants.config import NO_CHANNEL
from . import gpu, launch
from .call import Call


def forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *params, residual, relu, switches = args
    call = _call(x, switches, params)
    y = dense_like(x)
    x, residual = _dense(call, x, residual)
    params = _parameters(call, params)
    saved, index = _new_saved(call, x)
    with _on(x.device):
        for group in call.groups(x, tensors=2 if residual is None else 3):
            _pool(group, x, params, saved, index)
            launch.apply(group, saved, params[2], params[5], x=x, residual=residual, y=y, relu=relu)
    return y, saved, index


def gates_forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    *params, switches = args
    call = _call(x, switches, params)
    (x,) = _dense(call, x)
    params = _parameters(call, params)
    saved, index = _new_saved(call, x)
    with _on(x.device):
        for group in call.groups(x, tensors=1 if call.channel and call.K else 0):
            _pool(group, x, params, saved, index)
            if call.K:
                launch.apply(group, saved, params[2], params[5])
    return saved, index


def apply_gates(
    x: Tensor,
    saved: Tensor,
    s: Tensor,
    residual: Tensor | None,
    relu: bool,
    switches: int,
) -> Tensor:
    call = _call(x, switches, saved=saved)
    y = dense_like(x)
    x, residual = _dense(call, x, residual)
    s = s.contiguous()
    with _on(x.device):
        for group in call.groups(x, tensors=0):
            launch.apply(group, saved, s=s, x=x, residual=residual, y=y, relu=relu)
    return y


def gate_grads(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    saved: Tensor,
    s: Tensor,
    switches: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    call = _call(x, switches, saved=saved)
    new_dg = saved.new_empty if call.channel else saved.new_zeros
    dg, ds = new_dg((call.N, call.C)), saved.new_empty((call.N, 1, call.H, call.W))
    masked = None if y is None else dense_like(x)
    dy, x, y = _dense(call, dy, x, y)
    s = s.contiguous()
    with _on(x.device):
        for group in call.groups(x, tensors=0):
            parts = launch.products(group, x, dy, y, masked, saved, s, group.part(ds))
            if parts is not None:
                launch.join(group, parts, group.part(dg))
    return dg, ds, masked


def backward(
    dy: Tensor, x: Tensor, y: Tensor | None, saved: Tensor, index: Tensor, *args: Any
) -> tuple[Tensor | None, ...]:
    *params, switches = args
    call = _call(x, switches, params)
    masked = None if y is None else dense_like(x)
    dy, x, y = _dense(call, dy, x, y)

    def gradients(group: Call) -> tuple[Tensor | None, Tensor | None]:
        dlogits = saved.new_empty((group.images, group.P)) if group.K else None
        return launch.products(group, x, dy, y, masked, saved, None, dlogits), dlogits

    tensors = 3 if y is None else 5
    behind_relu = dy if y is None else masked
    grads = _backward(call, tensors, gradients, behind_relu, None, x, saved, index, params)
    return *grads, masked


def backward_from_gate_grads(
    dy: Tensor | None,
    s: Tensor | None,
    dg: Tensor | None,
    dlogits: Tensor | None,
    x: Tensor,
    saved: Tensor,
    index: Tensor,
    *args: Any,
) -> tuple[Tensor | None, ...]:
    *params, switches = args
    call = _call(x, switches, params)
    dy, x = _dense(call, dy, x)
    s = None if s is None else s.contiguous()
    dg = saved.new_zeros((call.N, call.C)) if dg is None else dg.contiguous()
    dlogits = saved.new_zeros((call.N, call.P)) if dlogits is None else dlogits.contiguous()

    def gradients(group: Call) -> tuple[Tensor, Tensor]:
        return group.part(dg)[:, None], group.part(dlogits)

    return _backward(call, 0, gradients, dy, s, x, saved, index, params)


def _backward(
    call: Call,
    tensors: int,
    gradients: Callable[..., Any],
    dy: Tensor | None,
    s: Tensor | None,
    x: Tensor,
    saved: Tensor,
    index: Tensor,
    params: list[Any],
) -> tuple[Tensor | None, ...]:
    """The rest of a backward, after gradients(group): partial sums of dg, and dlogits."""
    dx = torch.empty_like(x)
    w1, w2, ws, *_ = _parameters(call, params)
    partial = saved.new_empty((call.N, call.partial_size))
    grads = [None if p is None else saved.new_empty(p.shape) for p in params]
    with _on(x.device):
        for group in call.groups(x, tensors):
            dg_sums, dlogits = gradients(group)
            dmaps = dconv = map_sums = None
            if call.K:
                dmaps, dconv = launch.spatial_gate_backward(group, dlogits, saved, index, ws)
                if call.channel:
                    map_sums = launch.map_products(group, x, dmaps, saved, index)
            dpools = launch.channel_gate_backward(group, dg_sums, map_sums, dconv, w1, w2, saved, index, partial)
            launch.input_gradient(group, dy, x, saved, s, index, dmaps, dpools, dx)
        launch.parameter_gradients(call, partial, saved, _layers(call, grads))
    return dx, *(_like(p, g) for p, g in zip(params, grads, strict=True))


def _pool(group: Call, x: Tensor, params: list[Any], saved: Tensor, index: Tensor) -> None:
    """The launches before the convolution."""
    if group.channel:
        w1, w2, _, b1, b2, _ = params
        launch.channel_gate(group, launch.channel_pool(group, x), w1, b1, w2, b2, saved, index)
    if group.K:
        launch.spatial_pool(group, x, saved, index)


def _call(x: Tensor, switches: int, params: list[Any] | None = None, saved: Tensor | None = None) -> Call:
    """saved is given by operators without the weights as arguments."""
    N, C, H, W = x.shape
    if C * H * W > TRITON_ELEMENTS:
        raise NotImplementedError(f"the Triton kernels take images of at most 2^29 elements, got {C} x {H} x {W}")
    w1, _, ws, *_ = params or [None] * 6
    R = 0 if w1 is None else w1.shape[0]
    K = 0 if ws is None else ws.shape[3]
    channel = w1 is not None if saved is None else not switches & NO_CHANNEL
    sizes = row_sizes(x, w1, ws, switches) if saved is None else (saved.shape[1], 0)
    device = gpu.warp_size(x.device), gpu.pdl(x.device)
    return Call(N, C, R, H, W, K, switches, channel, *sizes, is_channels_last(x), accumulation_dtype(x.dtype), *device)


def _new_saved(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """saved and index, uninitialised."""
    saved = x.new_empty((call.N, call.saved_size), dtype=call.acc)
    return saved, x.new_empty((call.N, call.index_size), dtype=torch.int32)


def _parameters(call: Call, params: list[Any]) -> list[Any]:
    return _layers(call, [None if p is None else p.to(call.acc).contiguous() for p in params])


def _layers(call: Call, params: list[Any]) -> list[Any]:
    """The kernels take a single layer as the second one."""
    w1, w2, ws, b1, b2, bs = params
    return [None, w1, ws, None, b1, bs] if call.single else params


def _dense(call: Call, *tensors: Tensor | None) -> list[Any]:
    layout = torch.channels_last if call.channels_last else torch.contiguous_format
    return [t if t is None else t.contiguous(memory_format=layout) for t in tensors]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make the device of the tensors the current one: Triton launches there."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def _like(p: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The gradient with the dtype and strides of its parameter."""
    if p is None or gradient is None:
        return None
    same = p.dtype == gradient.dtype and p.is_contiguous()
    return gradient if same else torch.empty_like(p).copy_(gradient)
