"""cbam(): checks its arguments, chooses the backend, and connects the raw operators to autograd."""

import os

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import _ops, reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TRITON_DEVICES = ("cuda", "xpu")


def cbam(
    x: Tensor,
    w1: Tensor | None,
    w2: Tensor | None,
    ws: Tensor | None,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    bs: Tensor | None = None,
    *,
    norm: nn.BatchNorm2d | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(x g s + residual): CBAM with its channel gate g and spatial gate s, each part only where asked for.

    g = sigmoid(mlp(mean_HW x) + mlp(max_HW x)), mlp(v) = w2 relu(w1 v + b1) + b2;
    s = sigmoid(norm(conv_k([mean_C (x g); max_C (x g)]) + bs)), zero padding k // 2.
    The gradient of a maximum goes to its first index; NaN wins a maximum. Sums are float32 for half types.

    Args:
        x: (N, C, H, W), N >= 0, C, H, W >= 1; float32, float64, float16 or bfloat16; any strides. NCHW and
            channels_last are served as they are, anything else is copied first.
        w1: (R, C) or (R, C, 1, 1), the first layer of the MLP.
        w2: (C, R) or (C, R, 1, 1), the second. Both None: no channel gate, g = 1.
        ws: (1, 2, k, k), k odd; input channel 0 is the mean, 1 the maximum. None: no spatial gate, s = 1.
        b1, b2, bs: (R,), (C,), (1,), or None. Parameters have x's dtype, or float32 where x is float16 or bfloat16.
        norm: nn.BatchNorm2d(1) in the mode that it is in, or None; in training mode its running statistics move.
        residual: x's shape and dtype, added before the ReLU.
        relu: apply a ReLU at the end.

    Returns:
        (N, C, H, W) in x's dtype and memory layout.

    Raises:
        TypeError: an argument that is not a tensor or has a wrong dtype.
        ValueError: a wrong shape or device.

    Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.
    """
    _check(x, w1, w2, ws, b1, b2, bs, residual)
    backend = backend_for(x)
    if backend == "reference" or unserved(w1, ws, norm):
        return reference.cbam(x, w1, w2, ws, b1, b2, bs, norm=norm, residual=residual, relu=relu)
    if norm is not None:
        ws, bs = _fold(ws, bs, norm, _ops.accumulation_dtype(x.dtype))
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, w1, w2, ws, b1, b2, bs, residual)
    ):
        return _Cbam.apply(x, w1, w2, ws, b1, b2, bs, residual, relu, backend)
    dtype = _ops.accumulation_dtype(x.dtype)
    w1, b1, w2, b2, ws, bs = _cast((w1, b1, w2, b2, ws, bs), dtype)
    return _ops.operators(backend).forward(x, w1, b1, w2, b2, ws, bs, residual, relu)[0]


def channel_gate(x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None = None, b2: Tensor | None = None) -> Tensor:
    """The channel gate alone: arguments, result and errors as in :func:`cbam`, (N, C, 1, 1) in x's dtype."""
    _check(x, w1, w2, None, b1, b2, None, None)
    return reference.channel_gate(x, w1, w2, b1, b2)


def spatial_gate(x: Tensor, ws: Tensor, bs: Tensor | None = None, *, norm: nn.BatchNorm2d | None = None) -> Tensor:
    """The spatial gate alone, of x as it is: arguments, result and errors as in :func:`cbam`, (N, 1, H, W)."""
    _check(x, None, None, ws, None, None, bs, None)
    return reference.spatial_gate(x, ws, bs, norm=norm)


def unserved(w1: Tensor | None, ws: Tensor | None, norm: nn.BatchNorm2d | None) -> str:
    """Why these parameters are left to the reference, whatever the tensor; empty if kernels serve them."""
    if w1 is None or ws is None:
        return "one gate alone"
    if norm is not None and (norm.training or norm.running_mean is None):
        return "BatchNorm with the statistics of the batch"
    return ""


def _fold(ws: Tensor, bs: Tensor | None, norm: nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and bias of the convolution with BatchNorm's running statistics in them, differentiable."""
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias, bs)
    mean, var, weight, bias, bs = (None if t is None else t.to(dtype) for t in parts)
    scale = (var + norm.eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    offset = (-mean if bs is None else bs - mean) * scale
    return ws.to(dtype) * scale.view(1, 1, 1, 1), offset if bias is None else offset + bias


def backend_for(x: Tensor) -> str:
    """Which implementation serves x now: "cpu" (C++ kernels), "triton" (GPU kernels) or "reference" (plain PyTorch).

    The reference serves devices without kernels, functorch transforms and forward-mode AD, and everything if the
    environment says CBAM_FUSED_BACKEND=reference. CBAM_FUSED_BACKEND=cpu and =triton make missing kernels an error.
    Triton serves GPUs, and tensors on the CPU only where both CBAM_FUSED_BACKEND=triton and TRITON_INTERPRET=1 are set.

    Raises:
        RuntimeError: CBAM_FUSED_BACKEND names an unknown backend, or one that cannot serve x.
    """
    wanted = os.environ.get("CBAM_FUSED_BACKEND", "auto")
    if wanted not in ("auto", "cpu", "triton", "reference"):
        raise RuntimeError(f"CBAM_FUSED_BACKEND must be auto, cpu, triton or reference, got {wanted!r}")
    if wanted == "reference":
        return "reference"
    device = x.device.type
    if wanted == "triton":
        backend = "triton"
        interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if _ops.triton_missing or not (device in TRITON_DEVICES or interpreted):
            state = _ops.triton_missing or "Triton serves tensors on a CPU only with TRITON_INTERPRET=1"
            raise RuntimeError(f"CBAM_FUSED_BACKEND=triton, but x is on {x.device}; {state}")
    elif device in ("cpu", "meta") and not _ops.cpu_missing:
        backend = "cpu"
    elif wanted == "cpu":
        raise RuntimeError(
            f"CBAM_FUSED_BACKEND=cpu, but x is on {x.device}; CPU kernels: {_ops.cpu_missing or 'built'}"
        )
    elif device in TRITON_DEVICES and not _ops.triton_missing:
        backend = "triton"
    else:
        return "reference"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "reference"
    return backend


class _Cbam(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, w2, ws, b1, b2, bs, residual, relu, backend):
        dtype = _ops.accumulation_dtype(x.dtype)
        params = _cast((w1, b1, w2, b2, ws, bs), dtype)
        y, saved, index = _ops.operators(backend).forward(x, *params, residual, relu)
        ctx.save_for_backward(x, w1, w2, ws, b1, b2, bs, y if relu else None, saved, index)
        ctx.has_residual = residual is not None
        ctx.backend = backend
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w1, w2, ws, b1, b2, bs, y, saved, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        params = (w1, b1, w2, b2, ws, bs)
        grads = _ops.operators(ctx.backend).backward(dy, x, y, saved, index, *_cast(params, saved.dtype))
        dx, dresidual = grads[:2]
        dw1, db1, dw2, db2, dws, dbs = (
            None if p is None else g.to(p.dtype) for g, p in zip(grads[2:], params, strict=True)
        )
        if not ctx.has_residual:
            dresidual = None
        elif y is None:
            dresidual = dy
        return dx, dw1, dw2, dws, db1, db2, dbs, dresidual, None, None


def _differentiable_backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The backward as a differentiable function of its inputs (create_graph=True), through the reference."""
    *inputs, y, _, _ = ctx.saved_tensors
    if y is not None:
        dy = torch.where(y <= 0, 0, dy)
    wanted = [t for t, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
    grads = iter(torch.autograd.grad(reference.cbam(*inputs), wanted, dy, create_graph=True)) if wanted else iter(())
    result = [next(grads) if need else None for need in ctx.needs_input_grad[: len(inputs)]]
    return (*result, dy if ctx.has_residual else None, None, None)


def _cast(params: tuple[Tensor | None, ...], dtype: torch.dtype) -> list[Tensor | None]:
    return [p if p is None or p.dtype == dtype else p.to(dtype) for p in params]


def _check(x, w1, w2, ws, b1, b2, bs, residual) -> None:
    """The one check of shapes, dtypes and devices; messages name the argument, what it is and what it should be."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of float32, float64, float16 or bfloat16, got {got}")
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be (N, C, H, W) with C, H, W of at least 1, got {tuple(x.shape)}")
    if w1 is None and w2 is None and ws is None:
        raise ValueError("w1 and w2, or ws, or all three must be given: there is no gate without them")
    C = x.shape[1]
    R = w1.shape[0] if isinstance(w1, Tensor) and w1.dim() > 0 else 0
    if w1 is not None or w2 is not None:
        if not isinstance(w1, Tensor) or (w1.shape != (R, C) and w1.shape != (R, C, 1, 1)) or R == 0:
            raise _wrong("w1", w1, f"(R, {C}) or (R, {C}, 1, 1) with R of at least 1, for the {C} channels of x")
        if not isinstance(w2, Tensor) or (w2.shape != (C, R, 1, 1) and w2.shape != (C, R)):
            raise _wrong("w2", w2, f"({C}, {R}) or ({C}, {R}, 1, 1), for the {C} channels of x and the {R} rows of w1")
    if ws is not None and (
        not isinstance(ws, Tensor)
        or ws.dim() != 4
        or ws.shape[:2] != (1, 2)
        or ws.shape[2] != ws.shape[3]
        or ws.shape[3] % 2 == 0
    ):
        raise _wrong("ws", ws, "(1, 2, k, k) with k odd")
    for name, bias, size in (("b1", b1, R), ("b2", b2, C), ("bs", bs, 1)):
        if bias is not None and (not isinstance(bias, Tensor) or bias.shape != (size,)):
            raise _wrong(name, bias, f"({size},) or None")
    if residual is not None and (not isinstance(residual, Tensor) or residual.shape != x.shape):
        raise _wrong("residual", residual, f"{tuple(x.shape)}, the shape of x, or None")
    half = x.dtype in (torch.float16, torch.bfloat16)
    named = {"w1": w1, "w2": w2, "ws": ws, "b1": b1, "b2": b2, "bs": bs, "residual": residual}
    for name, t in named.items():
        if t is None:
            continue
        if t.dtype != x.dtype and not (half and t.dtype == torch.float32 and name != "residual"):
            allowed = f"{x.dtype} or torch.float32" if half and name != "residual" else f"{x.dtype}"
            raise TypeError(f"{name} must be {allowed}, for x of {x.dtype}, got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, where x is, got {t.device}")


def _wrong(name: str, value: object, wanted: str) -> Exception:
    if not isinstance(value, Tensor):
        return TypeError(f"{name} must be a tensor {wanted}, got {type(value).__name__}")
    return ValueError(f"{name} must be {wanted}, got {tuple(value.shape)}")
