"""CBAM in plain PyTorch: the ground truth of the tests, and the fallback for calls without a kernel.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018. The defaults are those of most code bases:
two bias-free 1x1 convolutions shared by both pools, and a k x k convolution over [mean, max] without BatchNorm.
:class:`cbam_fused.variants.config.Switches` lists the differences of other implementations.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hooks import has_hooks, has_own_call, is_own, must_be_called
from .variants.config import Switches
from .variants.state_dict import PublicNames
from .variants.table import resolve

TUTORIAL = Switches()
TIES = {"first": TUTORIAL, "even": Switches(ties="even")}

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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
        return F.conv2d(_ACTIVATIONS[switches.act](hidden), w2.reshape(w2.shape[0], -1, 1, 1), b2)

    return _gate_of_pools(x, mlp, switches)


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


def _gate_of_pools(x: Tensor, mlp: Callable[[Tensor], Tensor], switches: Switches) -> Tensor:
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
    norm: nn.Module | None = None,
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
    return F.conv2d(_maps(x, switches), ws, bs, padding=ws.shape[-1] // 2)


def _maps(x: Tensor, switches: Switches) -> Tensor:
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
    norm: nn.Module | None = None,
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


def _size(name: str, value: Any, odd: bool = False) -> int:
    """An integer of any type, such as NumPy's."""
    try:
        size = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = 0
    if size < 1 or (odd and size % 2 == 0):
        raise ValueError(f"{name} must be an {'odd ' * odd}integer of at least 1, got {value!r}")
    return size


class ChannelAttention(PublicNames):
    """The channel mask of CBAM. The caller multiplies x with it: ``x = ca(x) * x``.

    Args:
        channels: C of the feature map.
        reduction: with the tutorial's width rule the hidden layer has max(1, channels // reduction) units. Default:
            the variant's.
        variant: a name in ``cbam_fused.variants.VARIANTS``, whose switches are the defaults.
        device, dtype: of the parameters and buffers, as in PyTorch's modules.
        switches: overrides of single switches, see :class:`cbam_fused.variants.config.Switches`.

    Shape: (N, C, H, W) -> (N, C, 1, 1).
    State: ``fc1.weight (R, C, 1, 1)``, ``fc2.weight (C, R, 1, 1)``, and ``fc1.bias (R,)``, ``fc2.bias (C,)`` with the
    switch ``bias``. A state_dict with the names of a variant loads, too.
    Raises: ValueError for an argument out of range, an unknown variant, a width of 0; TypeError for an unknown
        keyword, with the nearest one.
    """

    part = "ca"

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        *,
        variant: str = "tutorial",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **switches: Any,
    ):
        super().__init__()
        row, self.switches = resolve(variant, switches, type(self))
        self.variant = variant
        channels = _size("channels", channels)
        reduction = _size("reduction", row.reduction if reduction is None else reduction)
        hidden, bias = self.switches.hidden(channels, reduction), self.switches.bias
        single = self.switches.width == "single"
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias, **place)
        self.fc2 = None if single else nn.Conv2d(hidden, channels, 1, bias=bias, **place)

    def forward(self, x: Tensor) -> Tensor:
        if self.calls_layers():
            return _gate_of_pools(x, self._mlp, self.switches)
        return channel_gate(x, *self.weights(), switches=self.switches)

    def calls_layers(self) -> bool:
        """Whether forward must call fc1 and fc2, since they were changed, and not only use their parameters."""
        return must_be_called(self.fc1, self.fc2)

    def _mlp(self, pooled: Tensor) -> Tensor:
        hidden = self.fc1(pooled)
        return hidden if self.fc2 is None else self.fc2(_ACTIVATIONS[self.switches.act](hidden))

    def weights(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """w1, w2, b1, b2 of :func:`channel_gate`."""
        fc1, fc2 = self.fc1, self.fc2
        return (fc1.weight, None, fc1.bias, None) if fc2 is None else (fc1.weight, fc2.weight, fc1.bias, fc2.bias)


class SpatialAttention(PublicNames):
    """The spatial mask of CBAM. The caller multiplies x with it: ``x = sa(x) * x``.

    Args:
        kernel_size: odd size of the convolution over the [mean, max] maps. Default: the variant's.
        variant, device, dtype, switches: as in :class:`ChannelAttention`.

    Shape: (N, C, H, W) -> (N, 1, H, W).
    State: ``conv1.weight (1, 2, k, k)``, mean first; ``conv1.bias (1,)`` with the switch ``spatial_bias``; ``bn.*``
    with ``norm``. A state_dict with the names of a variant loads, too.
    Raises: as :class:`ChannelAttention`.
    """

    part = "sa"

    def __init__(
        self,
        kernel_size: int | None = None,
        *,
        variant: str = "tutorial",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **switches: Any,
    ):
        super().__init__()
        row, self.switches = resolve(variant, switches, type(self))
        self.variant = variant
        kernel_size = _size("kernel_size", row.kernel_size if kernel_size is None else kernel_size, odd=True)
        maps, bias = 2 if self.switches.maps == "both" else 1, self.switches.spatial_bias
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(maps, 1, kernel_size, padding=kernel_size // 2, bias=bias, **place)
        if self.switches.spatial_order == "max_mean":
            # So that the same random numbers give the same function as in the variant.
            self.conv1.weight.data = self.conv1.weight.data.flip(1)
        momentum = self.switches.norm_momentum
        self.bn = nn.BatchNorm2d(1, momentum=momentum, **place) if self.switches.norm else None

    def forward(self, x: Tensor) -> Tensor:
        if self.calls_layers():
            logits = self.conv1(_maps(x, self.switches))
            return GATES[self.switches.spatial_gate](logits if self.bn is None else self.bn(logits))
        return spatial_gate(x, self.conv1.weight, self.conv1.bias, norm=self.bn, switches=self.switches)

    def calls_layers(self) -> bool:
        """Whether forward must call conv1 and bn, since they were changed, and not only use their parameters."""
        return must_be_called(self.conv1) or has_hooks(self.bn) or (self.bn is not None and has_own_call(self.bn))


class CBAM(PublicNames):
    """CBAM in plain PyTorch. :class:`cbam_fused.CBAM` is the fused version.

    Args:
        channels: C of the feature map.
        reduction: with the tutorial's width rule the hidden layer has max(1, channels // reduction) units. Default:
            the variant's, 16 for the tutorial.
        kernel_size: odd size of the spatial convolution. Default: the variant's, 7 for the tutorial.
        variant: a name in ``cbam_fused.variants.VARIANTS``, whose switches are the defaults.
        device, dtype: of the parameters and buffers, as in PyTorch's modules.
        switches: overrides of single switches, see :class:`cbam_fused.variants.config.Switches`; ``spatial=False``
            is the channel gate only.

    Shape: (N, C, H, W) -> (N, C, H, W).
    State: ``ca.fc1.weight (R, C, 1, 1)``, ``ca.fc2.weight (C, R, 1, 1)``, ``sa.conv1.weight (1, 2, k, k)``, mean
    first; with the switches ``bias``, ``spatial_bias`` and ``norm`` also ``ca.fc1.bias``, ``ca.fc2.bias``,
    ``sa.conv1.bias`` and ``sa.bn.*``. A state_dict with the names of any variant with these parameters loads, too.
    Raises: ValueError for an argument out of range, an unknown variant, a width of 0; TypeError for an unknown
        keyword, with the nearest one.
    """

    parts: tuple[type, type] = (ChannelAttention, SpatialAttention)

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        kernel_size: int | None = None,
        *,
        variant: str = "tutorial",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **switches: Any,
    ):
        super().__init__()
        self.switches = resolve(variant, switches, type(self))[1]
        self.variant = variant
        channel, spatial = self.parts
        options: dict[str, Any] = {"variant": variant, "device": device, "dtype": dtype, **switches}
        # Any: the arguments determine which of the two is None.
        self.ca: Any = channel(channels, reduction, **options) if self.switches.channel else None
        self.sa: Any = spatial(kernel_size, **options) if self.switches.spatial else None
        for mask in filter(None, (self.ca, self.sa)):
            mask.switches = self.switches  # the same object, which compares faster

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """relu(CBAM(x) + residual); residual and ReLU are optional."""
        if self.calls_masks():
            return gated(x, self.ca, self.sa, residual=residual, relu=relu, switches=self.switches)
        return cbam(x, **self._arguments(), residual=residual, relu=relu, switches=self.switches)

    def calls_masks(self) -> bool:
        """Whether forward calls ca and sa: one of them is not an unchanged mask of this class."""
        own = is_own(self.ca, ChannelAttention, self.switches) and is_own(self.sa, SpatialAttention, self.switches)
        return not own

    def _arguments(self) -> dict[str, Any]:
        """The module's arguments of :func:`cbam`."""
        w1, w2, b1, b2 = (None,) * 4 if self.ca is None else self.ca.weights()
        ws, bs, norm = (None,) * 3 if self.sa is None else (self.sa.conv1.weight, self.sa.conv1.bias, self.sa.bn)
        return {"w1": w1, "w2": w2, "ws": ws, "b1": b1, "b2": b2, "bs": bs, "norm": norm}

    def weights(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """w1, w2 and ws of :func:`cbam`."""
        w1, w2 = (None, None) if self.ca is None else self.ca.weights()[:2]
        return w1, w2, None if self.sa is None else self.sa.conv1.weight
