"""The drop-in modules: parameters of the reference, forward by the fused kernels."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from . import functional, reference, routing
from .as_built import AsBuilt
from .checks import check_input
from .hooks import is_own
from .variants.config import Switches

__all__ = ["CBAM", "Backend", "ChannelAttention", "SpatialAttention"]

fx.wrap("check_input")  # a leaf: tracing has no tensor to check


class Backend(NamedTuple):
    """The backend for a tensor: "cpu", "cuda", "triton" or "reference"; and the reason for the reference."""

    name: str
    reason: str


class ChannelAttention(reference.ChannelAttention):
    """Fused :class:`cbam_fused.reference.ChannelAttention`: same arguments, parameters and results."""

    def forward(self, x: Tensor) -> Tensor:
        if self.calls_layers():
            check_input(x)
            return super().forward(x)
        return functional.channel_gate(x, *self.weights(), switches=self.switches)

    def backend_for(self, x: Tensor) -> Backend:
        """Which implementation serves x, and why."""
        return _backend(x, self.switches, None, self.calls_layers(), "channel")


class SpatialAttention(reference.SpatialAttention):
    """Fused :class:`cbam_fused.reference.SpatialAttention`: same arguments, parameters and results."""

    def forward(self, x: Tensor) -> Tensor:
        if self.calls_layers():
            check_input(x)
            return super().forward(x)
        conv, norm = self.conv1, self.norm()
        return functional.spatial_gate(x, conv.weight, conv.bias, norm=norm, switches=self.switches)

    def norm(self) -> nn.BatchNorm2d | None:
        """The BatchNorm after the convolution; None if folded, where fuse_modules leaves an nn.Identity."""
        return None if isinstance(self.bn, nn.Identity) else self.bn

    def backend_for(self, x: Tensor) -> Backend:
        """Which implementation serves x, and why."""
        norm = self.norm()  # the mask calls it itself, so SyncBatchNorm needs no reference
        norm = None if isinstance(norm, nn.SyncBatchNorm) else norm
        return _backend(x, self.switches, norm, self.calls_layers(), "spatial")


class CBAM(reference.CBAM):
    """Fused CBAM: same arguments, parameters, initial values and results as :class:`cbam_fused.reference.CBAM`.

    A state_dict loads in both directions with ``strict=True``. The sub-modules ``ca`` and ``sa`` hold the parameters
    and return masks when called. ``forward`` calls them and their layers only if one of them was changed: if it has
    hooks, if a mask or a layer was replaced or has its own forward (in its class or on the instance), or if the
    geometry of a convolution was changed. A call without a kernel falls back to the reference; :meth:`backend_for`
    returns the reason.

    Shape: (N, C, H, W) -> (N, C, H, W), in x's dtype and memory layout.
    Raises: the errors of :func:`cbam_fused.functional.cbam`; if layers are called, PyTorch's errors for wrong channels
        and dtypes.
    Source: Woo et al., ECCV 2018.
    """

    parts = (ChannelAttention, SpatialAttention)

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
        super().__init__(channels, reduction, kernel_size, variant=variant, device=device, dtype=dtype, **switches)
        s = self.switches
        three_weights = s.channel and s.spatial and s.direct and not (s.bias or s.spatial_bias or s.norm or s.code)
        self._as_built = AsBuilt(self) if three_weights else None

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """relu(CBAM(x) + residual), in one pass; residual and ReLU are optional."""
        if self._as_built is not None and not torch.compiler.is_compiling():
            weights = self._as_built.weights(self)
            if weights is not None:
                return functional.cbam(x, *weights, residual=residual, relu=relu)
        if self.calls_masks():
            check_input(x, residual)
            return super().forward(x, residual=residual, relu=relu)
        return functional.cbam(x, **self._arguments(), residual=residual, relu=relu, switches=self.switches)

    def _arguments(self) -> dict[str, Any]:
        arguments = super()._arguments()
        if self.sa is not None:
            arguments["norm"] = self.sa.norm()
        return arguments

    def backend_for(self, x: Tensor) -> Backend:
        """Which implementation serves x, and why."""
        called = self.calls_masks()
        norm = None if called or self.sa is None else self.sa.norm()
        gates = ("channel",) * (self.ca is not None) + ("spatial",) * (self.sa is not None)
        return _backend(x, self.switches, norm, called, *gates)

    def calls_masks(self) -> bool:
        """Whether forward calls ca and sa: one of them is not an unchanged mask of this class."""
        own = is_own(self.ca, ChannelAttention, self.switches) and is_own(self.sa, SpatialAttention, self.switches)
        return not own


def attend(ca: Any, sa: Any, x: Tensor) -> Tensor:
    """x g s with the two masks of a caller; in one pass if both are unchanged masks of this package with equal ties."""
    switches = getattr(ca, "switches", None), getattr(sa, "switches", None)
    own = is_own(ca, ChannelAttention, switches[0]) and is_own(sa, SpatialAttention, switches[1])
    if ca is None or sa is None or not own or ca.switches.ties != sa.switches.ties:
        y = ca(x) * x
        return sa(y) * y
    w1, w2, b1, b2 = ca.weights()
    conv, norm, joined = sa.conv1, sa.norm(), _joined(ca.switches, sa.switches)
    return functional.cbam(x, w1, w2, conv.weight, b1, b2, conv.bias, norm=norm, switches=joined)


def _joined(of_ca: Switches, of_sa: Switches) -> Switches:
    """The switches of x g s, from the switches of the masks."""
    if not of_ca.residual and (of_ca.spatial_gate, of_ca.maps) == (of_sa.spatial_gate, of_sa.maps):
        return of_ca
    return replace(of_ca, residual=False, spatial_gate=of_sa.spatial_gate, maps=of_sa.maps)


def _backend(x: Tensor, switches: Switches, norm: nn.Module | None, called: bool, *gates: str) -> Backend:
    if called:
        reason = "masks and layers with hooks, their own forward or another geometry are called one by one"
        return Backend("reference", reason)
    name = routing.backend_for(x)
    if name == "reference":
        return Backend(name, routing.why_reference(x.device))
    if reason := routing.unserved(name, x, norm, switches, *gates):
        return Backend("reference", f"no {name} kernels for {reason}")
    return Backend(name, "")
