"""CBAM and its masks as modules that hold the parameters."""

import operator
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks import has_hooks, has_own_call, is_own, must_be_called
from ..variants.state_dict import PublicNames
from ..variants.table import resolve
from .functions import ACTIVATIONS, GATES, cbam, channel_gate, gate_of_pools, gated, maps, spatial_gate


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
            return gate_of_pools(x, self._mlp, self.switches)
        return channel_gate(x, *self.weights(), switches=self.switches)

    def calls_layers(self) -> bool:
        """Whether forward must call fc1 and fc2, since they were changed, and not only use their parameters."""
        return must_be_called(self.fc1, self.fc2)

    def _mlp(self, pooled: Tensor) -> Tensor:
        hidden = self.fc1(pooled)
        return hidden if self.fc2 is None else self.fc2(ACTIVATIONS[self.switches.act](hidden))

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
            logits = self.conv1(maps(x, self.switches))
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
