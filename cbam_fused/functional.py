"""CBAM and its two gates as functions, computed by the kernels or the reference."""

from typing import cast

import torch
from torch import Tensor, fx, nn

from . import batch_norm, reference
from ._ops import ops
from .checks import check
from .ops import autograd, registry
from .routing import backend_for, unserved
from .tensors import Parameters, accumulation_dtype
from .variants.config import Switches


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
    """relu(x g s + residual): CBAM with channel gate g and spatial gate s; every part is optional.

    g = sigmoid(mlp(mean_HW x) + mlp(max_HW x)), mlp(v) = w2 relu(w1 v + b1) + b2;
    s = sigmoid(norm(conv_k([mean_C (x g); max_C (x g)]) + bs)), zero padding k // 2.
    NaN is the maximum. Sums are float32 for half types.

    Args:
        x: (N, C, H, W), N >= 0, C, H, W >= 1; float32, float64, float16 or bfloat16; any strides. Tensors that are
            neither NCHW nor channels_last are copied first.
        w1: (R, C) or (R, C, 1, 1), the first layer of the MLP.
        w2: (C, R) or (C, R, 1, 1), the second. Both None: no channel gate, g = 1.
        ws: (1, 2, k, k), k odd; input channel 0 is the mean, 1 the maximum. None: no spatial gate, s = 1.
        b1, b2, bs: (R,), (C,), (1,), or None. Parameters have x's dtype, or float32 if x is float16 or bfloat16.
        norm: nn.BatchNorm2d(1) in its current mode, or None; training mode updates its running statistics. For another
            module the call falls back to the reference.
        residual: x's shape and dtype, added before the ReLU.
        relu: apply a ReLU at the end.
        ties: the gradient of a maximum goes to the "first" tied element, or is split "even"ly among them.
        switches: pools, activation, sums and gates, a single layer (w1 is (C, C), w2 and b2 are None), a convolution
            over the mean of the maps (ws is (1, 1, k, k)), x as a residual, and ties, instead of ``ties``. The weights
            determine the width and the gates.

    Returns:
        (N, C, H, W) in x's dtype and memory layout.

    Raises:
        TypeError: an argument that is not a tensor or has a wrong dtype.
        ValueError: a wrong shape or device, unknown ties, both ties and switches; norm or bs without ws, b1 or b2
            without w1 and w2.

    Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.
    """
    params = w1, w2, ws, b1, b2, bs
    try:
        backend = backend_for(x)
        # These operators check their arguments, so the Python check runs only if they fail.
        if backend in ("cpu", "cuda") and norm is None and ties == "first" and (w1 is not None or ws is not None):
            if switches is None:
                return _kernels(x, params, residual, relu, 0, backend)
            if switches.direct:
                return _kernels(x, params, residual, relu, switches.code, backend)
    except Exception as error:
        failure = error  # raised after this block, as a separate error
    else:
        switches = _checked(x, params, residual, ties, norm, switches)
        return _checked_cbam(x, params, norm, residual, relu, switches, backend)
    _checked(x, params, residual, ties, norm, switches)
    raise failure


def _checked_cbam(
    x: Tensor,
    params: Parameters,
    norm: nn.Module | None,
    residual: Tensor | None,
    relu: bool,
    switches: Switches,
    backend: str,
) -> Tensor:
    """cbam() with checked arguments."""
    w1, w2, ws, b1, b2, bs = params
    if backend == "reference" or unserved(backend, x, norm, switches, *gates_of(w1, ws)):
        return reference.cbam(x, *params, norm=norm, residual=residual, relu=relu, switches=switches)
    if switches.residual:
        residual = x if residual is None else x + residual
    if ws is not None:
        ws = _over_both_maps(ws, switches)
    code = switches.code
    served = cast("nn.BatchNorm2d | None", norm)  # another module is unserved
    if served is not None and batch_norm.uses_batch_statistics(served):
        return batch_norm.by_batch(x, (w1, w2, ws, b1, b2, bs), served, residual, relu, code, backend)
    if served is not None and ws is not None:
        ws, bs = batch_norm.fold(ws, bs, served, accumulation_dtype(x.dtype))
    return _kernels(x, (w1, w2, ws, b1, b2, bs), residual, relu, code, backend)


def _checked(
    x: Tensor,
    params: Parameters,
    residual: Tensor | None,
    ties: str,
    norm: nn.Module | None,
    switches: Switches | None,
) -> Switches:
    """Check the arguments of a call; return its switches."""
    if switches is not None and ties != "first":
        raise ValueError(f"ties must be given in switches if these are given, got ties={ties!r}")
    check(x, params, residual, ties, norm, switches)
    return reference.TIES[ties] if switches is None else switches


def gates_of(w1: Tensor | None, ws: Tensor | None) -> tuple[str, ...]:
    return ("channel",) * (w1 is not None) + ("spatial",) * (ws is not None)


def _over_both_maps(ws: Tensor, switches: Switches) -> Tensor:
    """The weight over [mean, max]; half of a weight over their mean, expanded, so that ops/flops.py counts it once."""
    return ws if switches.maps == "both" else (ws / 2).expand(-1, 2, -1, -1)


def _kernels(x: Tensor, params: Parameters, residual: Tensor | None, relu: bool, code: int, backend: str) -> Tensor:
    if torch.compiler.is_exporting():
        # exported_ops.py has these ops
        return cast("Tensor", ops.cbam(x, *params, residual, relu, code))
    if torch.is_grad_enabled():
        return autograd.apply(autograd.Cbam, x, *params, residual, relu, code, backend)
    return registry.operators[backend].forward(x, *params, residual, relu, code)[0]


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
    """The channel gate, (N, C, 1, 1) in x's dtype: arguments and errors as in :func:`cbam`."""
    params = w1, w2, None, b1, b2, None
    switches = _checked(x, params, None, ties, None, switches)
    backend = backend_for(x)
    if backend == "reference" or unserved(backend, x, None, switches, "channel"):
        return reference.channel_gate(x, w1, w2, b1, b2, switches)
    return _gate(x, params, switches.code, backend).to(x.dtype)


def spatial_gate(
    x: Tensor,
    ws: Tensor,
    bs: Tensor | None = None,
    *,
    norm: nn.Module | None = None,
    ties: str = "first",
    switches: Switches | None = None,
) -> Tensor:
    """The spatial gate of x, (N, 1, H, W) in x's dtype: arguments and errors as in :func:`cbam`."""
    switches = _checked(x, (None, None, ws, None, None, bs), None, ties, norm, switches)
    backend = backend_for(x)
    if backend == "reference" or unserved(backend, x, None, switches, "spatial") or not batch_norm.is_plain(norm):
        return reference.spatial_gate(x, ws, bs, norm=norm, switches=switches)
    params = None, None, _over_both_maps(ws, switches), None, None, bs
    logits = _gate(x, params, switches.code, backend)
    if norm is not None:  # it computes in the dtype of its tensors; float32 is more accurate for half types
        of_norm = [t.dtype for t in (norm.weight, norm.running_mean) if t is not None]
        logits = norm(logits.to(of_norm[0]) if of_norm else logits)
    return reference.GATES[switches.spatial_gate](logits).to(x.dtype)


def _gate(x: Tensor, params: Parameters, code: int, backend: str) -> Tensor:
    if torch.compiler.is_exporting():
        return cast("Tensor", ops.gate(x, *params, code))
    return autograd.apply(autograd.Gate, x, *params, code, backend)


# To torch.fx they are leaves: a graph has one call, and the checks see tensors only.
for _name in ("cbam", "channel_gate", "spatial_gate"):
    fx.wrap(_name)
