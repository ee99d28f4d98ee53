"""CBAM and its gates as functions of plain PyTorch operators."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..variants.config import Switches

TUTORIAL = Switches()
TIES = {"first": TUTORIAL, "even": Switches(ties="even")}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid}


def channel_gate(
    x: Tensor,
    w1: Tensor,
    w2: Tensor | None,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    switches: Switches = TUTORIAL,
) -> Tensor:
    """g = sigmoid(mlp(mean over H, W of x) + mlp(max over H, W of x)), with mlp(v) = W2 relu(W1 v + b1) + b2.

    b2 counts once per pool, hence twice. Parameters are cast to x's dtype.

    Args:
        x: (N, C, H, W).
        w1, w2: (R, C[, 1, 1]) and (C, R[, 1, 1]); w2 None: mlp(v) = W1 v + b1.
        b1, b2: (R,) and (C,), or None.
        switches: pools, activation, gate, and their order.

    Returns:
        (N, C, 1, 1) in x's dtype, with values in [0, 1]; in [0, 2] if the gate precedes the sum of two pools.
    """
    w1, w2, b1, b2 = _like(x, w1=w1, w2=w2, b1=b1, b2=b2)

    def mlp(pooled: Tensor) -> Tensor:
        hidden = F.conv2d(pooled, w1.reshape(w1.shape[0], -1, 1, 1), b1)
        if w2 is None:
            return hidden
        return F.conv2d(ACTIVATIONS[switches.act](hidden), w2.reshape(w2.shape[0], -1, 1, 1), b2)

    return gate_of_pools(x, mlp, switches)


def _like(x: Tensor, **parameters: Tensor | None) -> list[Any]:
    """The parameters in x's dtype.

    Raises:
        ValueError: a parameter is on the meta device and x is not; PyTorch would return uninitialised memory.
    """
    for name, p in parameters.items():
        # Under torch.fx both are proxies, which have no device yet.
        if isinstance(p, Tensor) and isinstance(x, Tensor) and p.is_meta and not x.is_meta:
            raise ValueError(f"{name} must be on {x.device} like x, got meta")
    return [None if p is None else p.to(x.dtype) for p in parameters.values()]


def gate_of_pools(x: Tensor, mlp: Callable[[Tensor], Tensor], switches: Switches) -> Tensor:
    gate = GATES[switches.channel_gate]
    pools = [_pool(x, name, switches.ties) for name in switches.pools]
    if switches.combine == "mean":
        return gate(mlp(torch.stack(pools).mean(0)))
    terms = [mlp(pooled) for pooled in pools]
    if switches.gate_place == "before_sum":
        return _sum([gate(term) for term in terms])
    return gate(_sum(terms))


def _sum(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])


def _pool(x: Tensor, name: str, ties: str) -> Tensor:
    """The pool of this name over H, W: (N, C, 1, 1)."""
    if name == "avg":
        return F.adaptive_avg_pool2d(x, 1)
    if name == "max":
        return F.adaptive_max_pool2d(x, 1) if ties == "first" else x.amax((2, 3), keepdim=True)
    if name == "lp":
        return torch.linalg.vector_norm(x, 2, (2, 3), keepdim=True)
    return torch.logsumexp(x, (2, 3), keepdim=True)


def spatial_gate(
    x: Tensor,
    ws: Tensor,
    bs: Tensor | None = None,
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    switches: Switches = TUTORIAL,
) -> Tensor:
    """s = sigmoid(norm(conv_k([mean over C of x; max over C of x]) + bs)), zero padding k // 2.

    Args:
        x: (N, C, H, W).
        ws: (1, 2, k, k), k odd; input channel 0 is the mean, 1 the maximum. With the switch maps "mean", (1, 1, k, k)
            over (mean + max) / 2.
        bs: (1,) or None.
        norm: BatchNorm of one channel, in its current mode, or None.
        switches: gate, ties.

    Returns:
        (N, 1, H, W) in x's dtype, with values in [0, 1].
    """
    logits = spatial_logits(x, ws, bs, switches)
    return GATES[switches.spatial_gate](logits if norm is None else norm(logits))


def spatial_logits(x: Tensor, ws: Tensor, bs: Tensor | None = None, switches: Switches = TUTORIAL) -> Tensor:
    """conv_k([mean over C of x; max over C of x]) + bs, the input of :func:`spatial_gate`'s norm and gate."""
    ws, bs = _like(x, ws=ws, bs=bs)
    return F.conv2d(maps(x, switches), ws, bs, padding=ws.shape[-1] // 2)


def maps(x: Tensor, switches: Switches) -> Tensor:
    """(N, 2, H, W): mean and maximum over C; with the switch maps "mean" (N, 1, H, W), the mean of the two."""
    highest = x.max(1, keepdim=True).values if switches.ties == "first" else x.amax(1, keepdim=True)
    maps = torch.cat([x.mean(1, keepdim=True), highest], 1)
    return maps.mean(1, keepdim=True) if switches.maps == "mean" else maps


def cbam(
    x: Tensor,
    w1: Tensor | None,
    w2: Tensor | None,
    ws: Tensor | None,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    bs: Tensor | None = None,
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    switches: Switches = TUTORIAL,
) -> Tensor:
    """Same arguments and result as :func:`cbam_fused.functional.cbam`, computed by plain PyTorch operators.

    ``switches`` are those of both gates, and ``residual``, which adds x to the result.
    """
    channel = None if w1 is None else partial(channel_gate, w1=w1, w2=w2, b1=b1, b2=b2, switches=switches)
    spatial = None if ws is None else partial(spatial_gate, ws=ws, bs=bs, norm=norm, switches=switches)
    return gated(x, channel, spatial, residual=residual, relu=relu, switches=switches)


def gated(
    x: Tensor,
    channel: Callable[[Tensor], Tensor] | None,
    spatial: Callable[[Tensor], Tensor] | None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    switches: Switches = TUTORIAL,
) -> Tensor:
    """:func:`cbam` with gates given as functions of the feature map, such as the two mask modules."""
    y = x
    for gate in (channel, spatial):
        if gate is not None:
            y = y * gate(y)
    if switches.residual:
        y = y + x
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y
