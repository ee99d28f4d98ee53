"""The raw operators under autograd. A backward that must be differentiable falls back to the reference.

params stands for w1, w2, ws, b1, b2, bs, as in registry.py. apply takes them one by one, since it tracks tensors only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import reference
from ..tensors import saved_gate, saved_logits
from ..variants.config import HARD_SPATIAL, NO_CHANNEL, decode
from . import registry

SIXTH = 0.1666666716337204  # 1 / 6 in float32; PyTorch's derivative of the hard sigmoid has it in every dtype


def apply(function: type[Function], *args: Any) -> Any:
    """function.apply(*args). torch.compile takes no tensor twice, such as a tied weight: views, there."""
    if not torch.compiler.is_compiling():
        return function.apply(*args)
    apart = [a.view_as(a) if isinstance(a, Tensor) and any(a is b for b in args[:i]) else a for i, a in enumerate(args)]
    return function.apply(*apart)


class Cbam(Function):
    """y of :func:`cbam_fused.functional.cbam`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        *params, residual, relu, switches, backend = args
        y, saved, index = registry.operators[backend].forward(x, *params, residual, relu, switches)
        ctx.save_for_backward(x, *params, y if relu else None, saved, index)
        ctx.has_residual, ctx.switches, ctx.backend = residual is not None, switches, backend
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, y, saved, index = ctx.saved_tensors
        if _differentiated():
            dy = _through_relu(dy, y)
            cbam = partial(reference.cbam, switches=decode(ctx.switches))
            grads = _differentiable(cbam, inputs, ctx.needs_input_grad, dy)
            return *grads, _residual_gradient(ctx, dy), None, None, None
        backward = registry.operators[ctx.backend].backward
        x, *params = inputs
        *grads, dresidual = backward(dy, x, y, saved, index, *params, ctx.switches)
        return *grads, _residual_gradient(ctx, dy if y is None else dresidual), None, None, None


class CbamBatchNorm(Function):
    """y with BatchNorm after the convolution, and the batch statistics: mean and variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        *params, weight, bias, residual, relu, switches, eps, backend = args
        operators = registry.operators[backend]
        saved, index = operators.gates_forward(x, *params, switches)
        logits = saved_logits(saved, x)
        scale, offset = (None if p is None else p.to(saved.dtype) for p in (weight, bias))
        normalised, mean, inverse_deviation = torch.native_batch_norm(logits, scale, offset, None, None, True, 0.0, eps)
        s = reference.GATES[decode(switches).spatial_gate](normalised)
        y = operators.apply_gates(x, saved, s, residual, relu, _of_gates(switches, params))
        of_norm = weight, bias, s, mean, inverse_deviation
        ctx.save_for_backward(x, *params, y if relu else None, saved, index, *of_norm)
        ctx.has_residual, ctx.switches, ctx.eps, ctx.backend = residual is not None, switches, eps, backend
        variance = inverse_deviation**-2 - eps  # here, since torch.compile sees a changed eps only in this graph
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, y, saved, index, weight, bias, s, mean, inverse_deviation = ctx.saved_tensors
        if _differentiated():
            dy = _through_relu(dy, y)
            cbam = partial(_batch_norm_reference, ctx.switches, ctx.eps)
            grads = _differentiable(cbam, [*inputs, weight, bias], ctx.needs_input_grad, dy)
            return *grads, _residual_gradient(ctx, dy), None, None, None, None
        x, *params = inputs
        operators = registry.operators[ctx.backend]
        dg, ds, masked = operators.gate_grads(dy, x, y, saved, s, _of_gates(ctx.switches, params))
        if y is not None:
            dy = masked
        dlogits, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            _through_gate(s, ds, ctx.switches),
            saved_logits(saved, x),
            None if weight is None else weight.to(saved.dtype),
            None,
            None,
            mean,
            inverse_deviation,
            True,
            ctx.eps,
            [True, weight is not None, bias is not None],
        )
        grads = operators.backward_from_gate_grads(dy, s, dg, dlogits, x, saved, index, *params, ctx.switches)
        affine = [None if p is None else d.to(p.dtype) for p, d in ((weight, dweight), (bias, dbias))]
        return *grads, *affine, _residual_gradient(ctx, dy), None, None, None, None


class Gate(Function):
    """One gate, whose parameters are given: g (N, C, 1, 1), or s before its sigmoid (N, 1, H, W), in acc."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        *params, switches, backend = args
        saved, index = registry.operators[backend].gates_forward(x, *params, switches)
        ctx.save_for_backward(x, *params, saved, index)
        ctx.switches, ctx.backend = switches, backend
        part = saved_gate(saved, x, switches) if params[2] is None else saved_logits(saved, x)
        return part.clone()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, saved, index = ctx.saved_tensors
        x, *params = inputs
        if _differentiated():
            gate = partial(gate_reference, ctx.switches)
            return *_differentiable(gate, inputs, ctx.needs_input_grad, d), None, None
        dg, dlogits = (d[:, :, 0, 0], None) if params[2] is None else (None, d)
        backward = registry.operators[ctx.backend].backward_from_gate_grads
        grads = backward(None, None, dg, dlogits, x, saved, index, *params, ctx.switches)
        return *grads, None, None


def _of_gates(switches: int, params: list[Tensor | None]) -> int:
    """The switches for operators that get the gates but not the weights."""
    return switches | NO_CHANNEL if params[0] is None else switches


def _through_gate(s: Tensor, ds: Tensor, switches: int) -> Tensor:
    """The gradient before the spatial gate."""
    if switches & HARD_SPATIAL:
        return torch.where((s > 0) & (s < 1), ds * SIXTH, 0)
    return ds * s * (1 - s)


def _through_relu(dy: Tensor, y: Tensor | None) -> Tensor:
    return dy if y is None else torch.where(y <= 0, 0, dy)


def _residual_gradient(ctx: Any, dy: Tensor) -> Tensor | None:
    return dy if ctx.has_residual else None


def _differentiated() -> bool:
    """Whether the running backward must be differentiable: create_graph, or forward mode around it."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def _differentiable(
    function: Callable[..., Tensor], inputs: list[Tensor | None], needs: tuple[bool, ...], dy: Tensor
) -> list[Tensor | None]:
    """The needed gradients of function(*inputs), differentiable, and without autocast, as in the kernels."""
    wanted = {i: t for i, t in enumerate(inputs) if t is not None and needs[i]}
    if not wanted:
        return [None] * len(inputs)

    def of_wanted(*tensors: Tensor) -> Tensor:
        given = dict(zip(wanted, tensors, strict=True))
        return function(*(given.get(i, t) for i, t in enumerate(inputs)))

    # Of views, so that no gradient goes from one input into another, as with tied weights: autograd does this itself.
    views = [t.view_as(t) for t in wanted.values()]
    with torch.autocast("cpu" if dy.is_meta else dy.device.type, enabled=False):  # it knows no meta device
        if forward_ad._current_level >= 0:  # autograd.grad fails in torch.func.jvp
            result, vjp, *_ = torch.func.vjp(of_wanted, *views)
            grads = vjp(dy.to(result.dtype))
        else:  # torch.func fails within hooks of saved tensors, such as those of checkpointing
            result = of_wanted(*views)
            grads = torch.autograd.grad(result, views, dy.to(result.dtype), create_graph=True)
    found = dict(zip(wanted, grads, strict=True))
    return [found.get(i) for i in range(len(inputs))]


def _batch_norm_reference(switches: int, eps: float, x: Tensor, *args: Any) -> Tensor:
    *params, weight, bias = args

    def norm(logits: Tensor) -> Tensor:
        return F.batch_norm(logits, None, None, weight, bias, True, 0.0, eps)

    return reference.cbam(x, *params, norm=norm, switches=decode(switches))


def gate_reference(switches: int, x: Tensor, *params: Any) -> Tensor:
    w1, w2, ws, b1, b2, bs = params
    if ws is None:
        return reference.channel_gate(x, w1, w2, b1, b2, decode(switches))
    return reference.spatial_logits(x, ws, bs, decode(switches))
