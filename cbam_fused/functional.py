"""CBAM and its two gates as functions: arguments are checked, and the kernels or the reference serve them."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad

from . import reference
from ._ops import ops
from .checks import check
from .hooks import has_own_call
from .ops import autograd, registry
from .tensors import TRITON_ELEMENTS, accumulation_dtype
from .variants.config import Switches

# In the order in which they are asked.
BACKENDS = ("cpu", "cuda", "triton")
NAMES = ("auto", *BACKENDS, "reference")
DEVICES = {"cpu": ("cpu", "meta"), "cuda": ("cuda",), "triton": ("cuda", "xpu")}
CPU = torch.device("cpu")
# Which backend is demanded, or "auto"; see use_backend. Looking into the environment takes longer than a small map.
wanted = os.environ.get("CBAM_FUSED_BACKEND", "auto")


def cbam(
    x: Tensor,
    w1: Tensor | None,
    w2: Tensor | None,
    ws: Tensor | None,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    bs: Tensor | None = None,
    *,
    norm: nn.Module | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    ties: str = "first",
    switches: Switches | None = None,
) -> Tensor:
    """relu(x g s + residual): CBAM with its channel gate g and spatial gate s, each part only where asked for.

    g = sigmoid(mlp(mean_HW x) + mlp(max_HW x)), mlp(v) = w2 relu(w1 v + b1) + b2;
    s = sigmoid(norm(conv_k([mean_C (x g); max_C (x g)]) + bs)), zero padding k // 2.
    NaN wins a maximum. Sums are float32 for half types.

    Args:
        x: (N, C, H, W), N >= 0, C, H, W >= 1; float32, float64, float16 or bfloat16; any strides. NCHW and
            channels_last are served as they are, anything else is copied first.
        w1: (R, C) or (R, C, 1, 1), the first layer of the MLP.
        w2: (C, R) or (C, R, 1, 1), the second. Both None: no channel gate, g = 1.
        ws: (1, 2, k, k), k odd; input channel 0 is the mean, 1 the maximum. None: no spatial gate, s = 1.
        b1, b2, bs: (R,), (C,), (1,), or None. Parameters have x's dtype, or float32 where x is float16 or bfloat16.
        norm: nn.BatchNorm2d(1) in the mode that it is in, or None; in training mode its running statistics move.
            Another module in its place runs the reference.
        residual: x's shape and dtype, added before the ReLU.
        relu: apply a ReLU at the end.
        ties: the gradient of a maximum goes to the "first" element that reaches it, or "even"ly to all of them.
        switches: other pools, activation, sums and gates, a single layer (w1 is (C, C), w2 and b2 are None), a
            convolution over the maps' mean (ws is (1, 1, k, k)), x itself as a residual; in place of ``ties``, which
            they have, too. Widths are those of the weights, and which gates there are follows from them.

    Returns:
        (N, C, H, W) in x's dtype and memory layout.

    Raises:
        TypeError: an argument that is not a tensor or has a wrong dtype.
        ValueError: a wrong shape or device, unknown ties, ties beside switches; norm or bs without ws, b1 or b2 without
            w1 and w2.

    Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.
    """
    failure = None
    try:
        backend = backend_for(x)
        # These operators themselves refuse what does not fit, so that the check is spared where all is well.
        if backend in ("cpu", "cuda") and norm is None and (w1 is not None or ws is not None):
            if switches is None and ties == "first":
                return _kernels(x, w1, w2, ws, b1, b2, bs, residual, relu, 0, backend)
            if switches is not None and ties == "first" and switches.direct:
                return _kernels(x, w1, w2, ws, b1, b2, bs, residual, relu, switches.code, backend)
    except Exception as error:
        failure = error
    switches = _checked(x, w1, w2, ws, b1, b2, bs, residual, ties, norm, switches)
    if failure is not None:
        raise failure
    if backend == "reference" or unserved(backend, x, norm, switches, *gates_of(w1, ws)):
        return reference.cbam(x, w1, w2, ws, b1, b2, bs, norm=norm, residual=residual, relu=relu, switches=switches)
    if switches.residual:
        residual = x if residual is None else x + residual
    if ws is not None:
        ws = _over_both_maps(ws, switches)
    code = switches.code
    norm = cast("nn.BatchNorm2d | None", norm)  # anything else is not served
    if norm is not None and _uses_batch_statistics(norm):
        return _with_batch_norm(x, w1, w2, ws, b1, b2, bs, norm, residual, relu, code, backend)
    if norm is not None and ws is not None:
        ws, bs = _fold(ws, bs, norm, accumulation_dtype(x.dtype))
    return _kernels(x, w1, w2, ws, b1, b2, bs, residual, relu, code, backend)


def _checked(x, w1, w2, ws, b1, b2, bs, residual, ties, norm, switches) -> Switches:
    """The switches of a call, whose arguments are right."""
    if switches is not None and ties != "first":
        raise ValueError(f"ties must be a part of switches where these are given, got ties={ties!r}")
    check(x, w1, w2, ws, b1, b2, bs, residual, ties, norm, switches)
    return reference.TIES[ties] if switches is None else switches


def gates_of(w1: Tensor | None, ws: Tensor | None) -> tuple[str, ...]:
    return ("channel",) * (w1 is not None) + ("spatial",) * (ws is not None)


def _over_both_maps(ws: Tensor, switches: Switches) -> Tensor:
    """The weight over [mean, max]; of one over their mean half for each, expanded: ops/flops.py counts it once."""
    return ws if switches.maps == "both" else (ws / 2).expand(-1, 2, -1, -1)


def _kernels(x, w1, w2, ws, b1, b2, bs, residual, relu, code, backend) -> Tensor:
    if torch.compiler.is_exporting():
        return ops.cbam(x, w1, w2, ws, b1, b2, bs, residual, relu, code)  # exported_ops.py, as all of ops here
    if torch.is_grad_enabled():
        return autograd.Cbam.apply(*_apart(x, w1, w2, ws, b1, b2, bs, residual, relu, code, backend))
    return registry.operators[backend].forward(x, w1, b1, w2, b2, ws, bs, residual, relu, code)[0]


def _apart(*args):
    """What a Function is applied to. torch.compile takes no tensor twice, such as a tied weight: views, there."""
    if not torch.compiler.is_compiling():
        return args
    return [a.view_as(a) if isinstance(a, Tensor) and any(a is b for b in args[:i]) else a for i, a in enumerate(args)]


def channel_gate(
    x: Tensor,
    w1: Tensor,
    w2: Tensor | None,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    ties: str = "first",
    switches: Switches | None = None,
) -> Tensor:
    """The channel gate alone: arguments, result and errors as in :func:`cbam`, (N, C, 1, 1) in x's dtype."""
    switches = _checked(x, w1, w2, None, b1, b2, None, None, ties, None, switches)
    backend = backend_for(x)
    if backend == "reference" or unserved(backend, x, None, switches, "channel"):
        return reference.channel_gate(x, w1, w2, b1, b2, switches)
    return _gate(x, w1, w2, None, b1, b2, None, switches.code, backend).to(x.dtype)


def spatial_gate(
    x: Tensor,
    ws: Tensor,
    bs: Tensor | None = None,
    *,
    norm: nn.Module | None = None,
    ties: str = "first",
    switches: Switches | None = None,
) -> Tensor:
    """The spatial gate alone, of x as it is: arguments, result and errors as in :func:`cbam`, (N, 1, H, W)."""
    switches = _checked(x, None, None, ws, None, None, bs, None, ties, norm, switches)
    backend = backend_for(x)
    if backend == "reference" or unserved(backend, x, None, switches, "spatial") or not _is_batch_norm(norm):
        return reference.spatial_gate(x, ws, bs, norm=norm, switches=switches)
    logits = _gate(x, None, None, _over_both_maps(ws, switches), None, None, bs, switches.code, backend)
    if norm is not None:  # it computes in the type of its tensors, and sums of a half type are better float32
        of_norm = [t.dtype for t in (norm.weight, norm.running_mean) if t is not None]
        logits = norm(logits.to(of_norm[0]) if of_norm else logits)
    return reference.GATES[switches.spatial_gate](logits).to(x.dtype)


def _gate(x, w1, w2, ws, b1, b2, bs, code, backend):
    if torch.compiler.is_exporting():
        return ops.gate(x, w1, w2, ws, b1, b2, bs, code)
    return autograd.Gate.apply(*_apart(x, w1, w2, ws, b1, b2, bs, code, backend))


def unserved_switches(switches: Switches, *gates: str) -> str:
    """Which switches of these gates, "channel" or "spatial", no backend has kernels for; empty if none."""
    other = "channel" in gates and not {*switches.pools} <= {"avg", "max"}
    return f"pools={switches.pools!r}" if other else ""


def unserved(backend: str, x: Tensor, norm: nn.Module | None, switches: Switches, *gates: str) -> str:
    """Why this backend leaves such a call to the reference; empty if it serves it."""
    if reason := unserved_switches(switches, *gates):
        return reason
    if not _is_batch_norm(norm):
        return f"{type(norm).__name__} in the place of BatchNorm2d"
    if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and _uses_batch_statistics(norm):
        if isinstance(norm, nn.SyncBatchNorm):
            return "SyncBatchNorm, whose statistics are those of all processes"
        if x.shape[0] == 0:
            return "BatchNorm by the statistics of an empty batch"
    if backend == "triton" and x.shape[1:].numel() > TRITON_ELEMENTS:
        return "images of more than 2^29 elements"
    return ""


def _is_batch_norm(norm: nn.Module | None) -> bool:
    """BatchNorm or nothing; a subclass with a forward of its own, such as one with an activation, is another module."""
    if norm is None:
        return True
    forwards = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
    return (
        isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        and type(norm).forward in forwards
        and not has_own_call(norm)
    )


def _uses_batch_statistics(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> bool:
    return norm.training or norm.running_mean is None


def _with_batch_norm(x, w1, w2, ws, b1, b2, bs, norm, residual, relu, code, backend) -> Tensor:
    """cbam() with the statistics of the batch; the running ones move as in nn.BatchNorm2d."""
    N, _, H, W = x.shape
    count = N * H * W
    if count == 1:  # an empty batch is the reference's
        raise ValueError(f"BatchNorm by the batch needs more than one pixel in it, got x of shape {tuple(x.shape)}")
    args = (x, w1, w2, ws, b1, b2, bs, norm.weight, norm.bias, residual, relu, code, norm.eps)
    exporting = torch.compiler.is_exporting()
    results = ops.cbam_batch_norm(*args) if exporting else autograd.CbamBatchNorm.apply(*_apart(*args, backend))
    y, mean, variance = results
    if norm.training and norm.track_running_stats:
        with torch.no_grad():
            share = norm.momentum or 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)  # += would set an attribute, which compiled checkpointing does not do
                share = 1 / norm.num_batches_tracked if norm.momentum is None else share
            unbiased = variance * (count / (count - 1))
            for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                if running is not None:
                    running += share * (value - running)
    return y


def _fold(ws: Tensor, bs: Tensor | None, norm: nn.BatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and bias of the convolution with BatchNorm's running statistics in them, differentiable."""
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias, bs)
    mean, var, weight, bias, bs = (None if t is None else t.to(dtype) for t in parts)
    assert mean is not None and var is not None  # without them the statistics are those of the batch
    scale = (var + norm.eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    offset = (-mean if bs is None else bs - mean) * scale
    one_map = ws.stride(1) == 0  # expanded, and stays so
    ws = (ws[:, :1] if one_map else ws).to(dtype) * scale.view(1, 1, 1, 1)
    return ws.expand(-1, 2, -1, -1) if one_map else ws, offset if bias is None else offset + bias


def backend_for(x: Tensor) -> str:
    """Which implementation serves x now: "cpu", "cuda" (C++, CUDA kernels), "triton" or "reference" (plain PyTorch).

    GPU tensors go to the CUDA kernels where these were built for such a GPU, else to Triton's. The reference serves
    devices without kernels, functorch transforms, forward-mode AD, torch.onnx.export and torch.jit.trace, and
    everything if the environment says CBAM_FUSED_BACKEND=reference. CBAM_FUSED_BACKEND=cpu, =cuda and =triton make
    missing kernels an error. Triton serves GPUs, and tensors on the CPU only where both CBAM_FUSED_BACKEND=triton and
    TRITON_INTERPRET=1 are set. :func:`cbam_fused.use_backend` changes in a running process what CBAM_FUSED_BACKEND said
    at import.

    Raises:
        RuntimeError: CBAM_FUSED_BACKEND names an unknown backend, or one that cannot serve x.
    """
    backend = "cpu" if wanted == "auto" and x.device == CPU and not registry.cpu_missing else _find_backend(x.device)
    return "reference" if _needs_plain_operators() else backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within it, every thread has the backend that CBAM_FUSED_BACKEND=name demands.

    Raises:
        ValueError: the name is not "auto", "cpu", "cuda", "triton" or "reference".
    """
    global wanted
    if name not in NAMES:
        raise ValueError(f"backend must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {name!r}")
    before, wanted = wanted, name
    try:
        yield
    finally:
        wanted = before


def without_demand() -> AbstractContextManager[None]:
    """Within it only a demand for the reference counts: what is proved or measured may be on its way to a GPU."""
    return use_backend("reference" if wanted == "reference" else "auto")


def _find_backend(device: torch.device) -> str:
    if wanted not in NAMES:
        raise RuntimeError(f"CBAM_FUSED_BACKEND must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {wanted!r}")
    if wanted == "reference":
        return wanted
    reason = ""
    for backend in BACKENDS if wanted == "auto" else (wanted,):
        reason = _missing(backend, device)
        if not reason:
            return backend
    if wanted != "auto":
        raise RuntimeError(f"CBAM_FUSED_BACKEND={wanted}, but x is on {device}; {reason}")
    return "reference"


def why_reference(device: torch.device) -> str:
    """Why the reference serves tensors on the device."""
    if _needs_plain_operators():
        return "torch.func, forward mode, torch.jit.trace and torch.onnx.export take plain operators"
    if wanted == "reference":
        return "kernels are switched off by CBAM_FUSED_BACKEND or use_backend"
    reasons = [_missing(backend, device) for backend in BACKENDS if device.type in DEVICES[backend]]
    return "; ".join((f"no kernels for {device.type} tensors", *reasons))


def _missing(backend: str, device: torch.device) -> str:
    """Why this backend has no kernels for tensors on the device; empty if it has."""
    served = device.type in DEVICES[backend]
    if backend == "cpu":
        reason = registry.cpu_missing or ("" if served else "they serve tensors on a CPU")
        return reason and f"CPU kernels: {reason}"
    if backend == "cuda":
        if served:
            return registry.cuda_unserved(device)
        return f"CUDA kernels: {registry.cuda_missing or 'they serve tensors on NVIDIA GPUs'}"
    if registry.triton_missing or served:
        return registry.triton_missing
    # What the interpreter serves is served only on demand.
    interpreted = device.type == "cpu" and wanted == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return "" if interpreted else "Triton serves tensors on a CPU only with TRITON_INTERPRET=1"


def _needs_plain_operators() -> bool:
    """Under a transform that knows no rule for ours, or where the result runs where they are unknown."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch._C._get_tracing_state() is not None or (
        torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    )


# To torch.fx they are leaves: a graph has one call, and the checks see tensors only.
for _name in ("cbam", "channel_gate", "spatial_gate"):
    fx.wrap(_name)
