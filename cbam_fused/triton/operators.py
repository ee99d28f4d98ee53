"""The raw operators forward and backward, as _ops.py describes them: the kernels in order, group by group of images."""

import contextlib

import torch
from torch import Tensor

from .. import _ops
from . import launch
from .autotune import tuned


def forward(x, w1, b1, w2, b2, ws, bs, residual, relu):
    call = _call(x, w1, ws)
    y = _ops._dense_like(x)
    x, residual = _dense(call, x, residual)
    w1, b1, w2, b2, ws, bs = (None if t is None else t.to(call.acc).contiguous() for t in (w1, b1, w2, b2, ws, bs))
    saved = x.new_empty((call.N, 3 * call.C + 2 * call.R + 3 * call.P), dtype=call.acc)
    index = x.new_empty((call.N, call.C + call.P), dtype=torch.int32)

    def run(call: launch.Call) -> None:
        for group in call.groups(x, tensors=2 if residual is None else 3):
            pools = launch.channel_pool(group, x)
            launch.channel_gate(group, pools, w1, b1, w2, b2, saved, index)
            launch.spatial_pool(group, x, saved, index)
            launch.gate_and_apply(group, x, residual, ws, bs, saved, y, relu)

    with _on(x.device):
        run(tuned("forward", call, x, run))
    return y, saved, index


def backward(dy, x, y, saved, index, w1, b1, w2, b2, ws, bs, even_ties):
    if even_ties:
        raise NotImplementedError("the Triton kernels give the gradient of a maximum to the first element")
    call = _call(x, w1, ws)
    params = (w1, b1, w2, b2, ws, bs)
    dx = _ops._dense_like(x)
    masked = x.new_empty((0,)) if y is None else torch.empty_like(dx)
    dy, x, y = _dense(call, dy, x, y)
    w1, w2, ws = (t.to(call.acc).contiguous() for t in (w1, w2, ws))
    partial = saved.new_empty((call.N, call.C + 2 * call.R + 2 * call.K**2 + 1))
    grads = [None if p is None else saved.new_empty(p.shape) for p in params]

    def run(call: launch.Call) -> None:
        for group in call.groups(x, tensors=3 if y is None else 5):
            over_channels, over_pixels = launch.products(group, x, dy, y, masked, saved)
            dmaps, dconv = launch.spatial_gate_backward(group, over_channels, saved, ws)
            through_maps = launch.map_products(group, x, dmaps, index)
            dpools = launch.channel_gate_backward(group, over_pixels, through_maps, dconv, w1, w2, saved, partial)
            launch.input_gradient(group, dy if y is None else masked, saved, index, dmaps, dpools, dx)

    with _on(x.device):
        run(tuned("backward", call, x, run))
        launch.parameter_gradients(call, partial, saved, grads)
    return dx, masked, *(_like(p, g, saved) for p, g in zip(params, grads, strict=True))


def _call(x: Tensor, w1: Tensor | None, ws: Tensor | None) -> launch.Call:
    if w1 is None or ws is None:
        raise NotImplementedError("the Triton kernels serve both gates together: w1, w2 and ws must be given")
    N, C, H, W = x.shape
    if C * H * W >= 2**31:
        raise NotImplementedError(f"the Triton kernels take images of less than 2^31 elements, got {C} x {H} x {W}")
    acc, warp_size = _ops.accumulation_dtype(x.dtype), launch.warp_size(x.device)
    return launch.Call(N, C, w1.shape[0], H, W, ws.shape[3], _ops.is_channels_last(x), acc, warp_size)


def _dense(call: launch.Call, *tensors: Tensor | None) -> list[Tensor | None]:
    layout = torch.channels_last if call.channels_last else torch.contiguous_format
    return [t if t is None else t.contiguous(memory_format=layout) for t in tensors]


def _on(device: torch.device):
    """Makes the tensors' device the current one, which is where Triton launches."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def _like(p: Tensor | None, gradient: Tensor | None, saved: Tensor) -> Tensor:
    """The gradient in the type and with the strides of its parameter; empty without one."""
    if p is None:
        return saved.new_empty((0,))
    same = p.dtype == gradient.dtype and p.is_contiguous()
    return gradient if same else torch.empty_like(p).copy_(gradient)
