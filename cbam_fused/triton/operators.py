"""The raw operators, as ops/registry.py describes them: the kernels in order, group by group of images."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tensors import TRITON_ELEMENTS, accumulation_dtype, dense_like, is_channels_last, saved_gate, saved_logits
from ..variants.config import NO_CHANNEL
from . import launch
from .autotune import tuned


def forward(x, w1, w2, ws, b1, b2, bs, residual, relu, switches):
    _refuse(switches)
    call = _call(x, w1, ws)
    y = dense_like(x)
    x, residual = _dense(call, x, residual)
    params = _contiguous(call, w1, w2, ws, b1, b2, bs)
    saved, index = _new_saved(call, x)

    def run(call: launch.Call) -> None:
        for group in call.groups(x, tensors=2 if residual is None else 3):
            _pool(group, x, params, saved, index)
            launch.gate_and_apply(group, saved, params[2], params[5], x=x, residual=residual, y=y, relu=relu)

    _launch("forward", call, x, run)
    return y, saved, index


def attend(x, w1, w2, ws, b1, b2, bs, switches):
    _refuse(switches)
    call = _call(x, w1, ws)
    (x,) = _dense(call, x)
    params = _contiguous(call, w1, w2, ws, b1, b2, bs)
    saved, index = _new_saved(call, x)

    def run(call: launch.Call) -> None:
        for group in call.groups(x, tensors=1 if call.R and call.K else 0):
            _pool(group, x, params, saved, index)
            if call.K:
                launch.gate_and_apply(group, saved, params[2], params[5])

    _launch("attend", call, x, run)
    return saved, index


def apply(x, saved, s, residual, relu, switches):
    _refuse(switches)
    call = _call(x, saved=saved)
    y = dense_like(x)
    x, residual = _dense(call, x, residual)
    s = s.contiguous()

    def run(call: launch.Call) -> None:
        for group in call.groups(x, tensors=0):
            launch.gate_and_apply(group, saved, s=s, x=x, residual=residual, y=y, relu=relu)

    _launch("apply", call, x, run)
    return y


def products(dy, x, y, saved, s, switches):
    _refuse(switches)
    call = _call(x, saved=saved)
    dg, ds = saved.new_empty((call.N, call.C)), saved.new_empty((call.N, 1, call.H, call.W))
    masked = None if y is None else dense_like(x)
    dy, x, y = _dense(call, dy, x, y)
    s = s.contiguous()

    def run(call: launch.Call) -> None:
        for group in call.groups(x, tensors=0):
            parts = launch.products(group, x, dy, y, masked, saved, s, group.part(ds))
            launch.join(group, parts, group.part(dg))

    _launch("products", call, x, run)
    return dg, ds, masked


def backward(dy, x, y, saved, index, w1, w2, ws, b1, b2, bs, switches):
    _refuse(switches)
    call = _call(x, w1, ws)
    masked = None if y is None else dense_like(x)
    dy, x, y = _dense(call, dy, x, y)

    def gradients(group: launch.Call) -> tuple[Tensor, Tensor]:
        dlogits = saved.new_empty((group.images, group.P))
        return launch.products(group, x, dy, y, masked, saved, None, dlogits), dlogits

    tensors = 3 if y is None else 5
    params = (w1, w2, ws, b1, b2, bs)
    behind_relu = dy if y is None else masked
    grads = _backward("backward", call, tensors, gradients, behind_relu, None, x, saved, index, params)
    return *grads, masked


def backward_gates(dy, s, dg, dlogits, x, saved, index, w1, w2, ws, b1, b2, bs, switches):
    _refuse(switches)
    call = _call(x, w1, ws)
    dy, x = _dense(call, dy, x)
    s = None if s is None else s.contiguous()
    dg = saved.new_zeros((call.N, call.C)) if dg is None else dg.contiguous()
    dlogits = saved.new_zeros((call.N, call.P)) if dlogits is None else dlogits.contiguous()

    def gradients(group: launch.Call) -> tuple[Tensor, Tensor]:
        return group.part(dg)[:, None], group.part(dlogits)

    params = (w1, w2, ws, b1, b2, bs)
    return _backward("backward_gates", call, 0, gradients, dy, s, x, saved, index, params)


def _backward(operator: str, call: launch.Call, tensors: int, gradients: Callable, dy, s, x, saved, index, params):
    """What both kinds of backward end with, from gradients(group): that of g in parts, and that of the convolution."""
    dx = torch.empty_like(x)
    w1, w2, ws = _contiguous(call, *params[:3])
    partial = saved.new_empty((call.N, call.C + 2 * call.R + call.conv_size))
    grads = [None if p is None else saved.new_empty(p.shape) for p in params]

    def run(call: launch.Call) -> None:
        for group in call.groups(x, tensors):
            direct, dlogits = gradients(group)
            dmaps = dconv = through_maps = None
            if call.K:
                dmaps, dconv = launch.spatial_gate_backward(group, dlogits, saved, ws)
                if call.R:
                    through_maps = launch.map_products(group, x, dmaps, index)
            dpools = launch.channel_gate_backward(group, direct, through_maps, dconv, w1, w2, saved, partial)
            launch.input_gradient(group, dy, saved, s, index, dmaps, dpools, dx)

    _launch(operator, call, x, run)
    with _on(x.device):
        launch.parameter_gradients(call, partial, saved, grads)
    return dx, *(_like(p, g) for p, g in zip(params, grads, strict=True))


def _pool(group: launch.Call, x: Tensor, params: list[Tensor | None], saved: Tensor, index: Tensor) -> None:
    """All that comes before the convolution."""
    if group.R:
        w1, w2, _, b1, b2, _ = params
        launch.channel_gate(group, launch.channel_pool(group, x), w1, b1, w2, b2, saved, index)
    if group.K:
        launch.spatial_pool(group, x, saved, index)


def _launch(operator: str, call: launch.Call, x: Tensor, run: Callable[[launch.Call], None]) -> None:
    with _on(x.device):
        run(tuned(operator, call, x, run))


def _refuse(switches: int) -> None:
    if switches & ~NO_CHANNEL:
        raise NotImplementedError("the Triton kernels serve the tutorial's switches alone")


def _call(x: Tensor, w1: Tensor | None = None, ws: Tensor | None = None, saved: Tensor | None = None) -> launch.Call:
    N, C, H, W = x.shape
    if C * H * W > TRITON_ELEMENTS:
        raise NotImplementedError(f"the Triton kernels take images of at most 2^29 elements, got {C} x {H} x {W}")
    R = 0 if w1 is None else w1.shape[0]
    if saved is not None:
        R = (saved.shape[1] - 3 * C - 3 * H * W) // 2
    K = 0 if ws is None else ws.shape[3]
    acc, warp_size = accumulation_dtype(x.dtype), launch.warp_size(x.device)
    return launch.Call(N, C, R, H, W, K, is_channels_last(x), acc, warp_size)


def _new_saved(call: launch.Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for saved and index, with what an absent gate leaves there: itself 1, all else 0."""
    size, places = (call.N, 3 * call.C + 2 * call.R + 3 * call.P), (call.N, call.C + call.P)
    if call.R and call.K:
        return x.new_empty(size, dtype=call.acc), x.new_empty(places, dtype=torch.int32)
    saved = x.new_zeros(size, dtype=call.acc)
    (saved_logits(saved, x) if call.R else saved_gate(saved, x, 0)).fill_(1)
    return saved, x.new_zeros(places, dtype=torch.int32)


def _contiguous(call: launch.Call, *params: Tensor | None) -> list[Any]:
    return [None if p is None else p.to(call.acc).contiguous() for p in params]


def _dense(call: launch.Call, *tensors: Tensor | None) -> list[Tensor | None]:
    layout = torch.channels_last if call.channels_last else torch.contiguous_format
    return [t if t is None else t.contiguous(memory_format=layout) for t in tensors]


def _on(device: torch.device):
    """Makes the tensors' device the current one, which is where Triton launches."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def _like(p: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The gradient in the type and with the strides of its parameter."""
    if p is None or gradient is None:
        return None
    same = p.dtype == gradient.dtype and p.is_contiguous()
    return gradient if same else torch.empty_like(p).copy_(gradient)
