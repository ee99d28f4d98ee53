"""The drop-in modules: the parameters of the reference, the computation of the fused kernels."""

from typing import NamedTuple

from torch import Tensor, nn

from . import functional, reference
from .checks import check_input
from .switches import Switches

__all__ = ["CBAM", "Backend", "ChannelAttention", "SpatialAttention"]

# The kernels know only the tutorial's values of these switches, by gate.
SERVED = {
    "channel": ("act", "pools", "combine", "gate_place", "channel_gate"),
    "spatial": ("spatial_gate",),
}


class Backend(NamedTuple):
    """Which implementation serves a tensor, "cpu", "triton" or "reference", and for the reference why."""

    name: str
    reason: str


class ChannelAttention(reference.ChannelAttention):
    """Fused :class:`cbam_fused.reference.ChannelAttention`: same arguments, parameters and results."""

    def __init__(self, channels: int, reduction: int | None = None, *, variant: str = "tutorial", **switches):
        super().__init__(channels, reduction, variant=variant, **switches)
        self._unserved = _unserved(self.switches, "channel")

    def forward(self, x: Tensor) -> Tensor:
        if self._unserved:
            check_input(x)
            return super().forward(x)
        return functional.channel_gate(x, *self.weights(), ties=self.switches.ties)

    def backend_for(self, x: Tensor) -> Backend:
        """Which implementation serves x, and why."""
        return _backend(x, self, None)


class SpatialAttention(reference.SpatialAttention):
    """Fused :class:`cbam_fused.reference.SpatialAttention`: same arguments, parameters and results."""

    def __init__(self, kernel_size: int | None = None, *, variant: str = "tutorial", **switches):
        super().__init__(kernel_size, variant=variant, **switches)
        self._unserved = _unserved(self.switches, "spatial")

    def forward(self, x: Tensor) -> Tensor:
        if self._unserved:
            check_input(x)
            return super().forward(x)
        return functional.spatial_gate(x, self.weight(), self.conv1.bias, norm=self.bn, ties=self.switches.ties)

    def weight(self) -> Tensor:
        """The weight over [mean, max]; one over their mean has half of it for each."""
        weight = self.conv1.weight
        return weight if weight.shape[1] == 2 else (weight / 2).repeat(1, 2, 1, 1)

    def backend_for(self, x: Tensor) -> Backend:
        """Which implementation serves x, and why."""
        return _backend(x, self, None)


class CBAM(reference.CBAM):
    """Fused CBAM: same arguments, parameters, initial values and results as :class:`cbam_fused.reference.CBAM`.

    A state_dict goes from one to the other in both directions with ``strict=True``. The sub-modules
    ``ca`` and ``sa`` hold the parameters and still return masks when called themselves, but ``forward``
    does not call them, so hooks registered on them do not run. What the kernels do not serve runs the reference;
    :meth:`backend_for` says why.

    Shape: (N, C, H, W) -> (N, C, H, W), in x's dtype and memory layout.
    Raises: what :func:`cbam_fused.functional.cbam` raises.
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
        **switches,
    ):
        super().__init__(channels, reduction, kernel_size, variant=variant, **switches)
        self._unserved = _unserved(self.switches, "channel", "spatial")
        # Only w1, w2, ws: the fast path spares the look-ups of everything else.
        s = self.switches
        extras = s.bias or s.spatial_bias or s.norm or s.residual or s.maps == "mean" or s.ties == "even"
        self._three_weights = s.channel and s.spatial and not extras and not self._unserved

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """relu(CBAM(x) + residual), each part only where asked for, in one pass."""
        if self._three_weights:
            ca = self.ca
            return functional.cbam(x, ca.fc1.weight, ca.fc2.weight, self.sa.conv1.weight, residual=residual, relu=relu)
        if self._unserved:
            check_input(x)
            return super().forward(x, residual=residual, relu=relu)
        if self.switches.residual:
            residual = x if residual is None else x + residual
        return attend(self.ca, self.sa, x, residual=residual, relu=relu)

    def backend_for(self, x: Tensor) -> Backend:
        """Which implementation serves x, and why."""
        return _backend(x, self, None if self.sa is None else self.sa.bn)


def attend(
    ca: ChannelAttention | None,
    sa: SpatialAttention | None,
    x: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(x g s + residual) with the two masks, neither of them the reference's only, in one pass."""
    w1, w2, b1, b2 = (None,) * 4 if ca is None else ca.weights()
    ws, bs, norm = (None,) * 3 if sa is None else (sa.weight(), sa.conv1.bias, sa.bn)
    ties = (ca or sa).switches.ties
    return functional.cbam(x, w1, w2, ws, b1, b2, bs, norm=norm, residual=residual, relu=relu, ties=ties)


def _unserved(switches: Switches, *gates: str) -> str:
    """Why the kernels do not serve these gates; empty if they do."""
    used = [gate for gate in gates if getattr(switches, gate)]
    names = [n for gate in used for n in SERVED[gate] if getattr(switches, n) != getattr(reference.TUTORIAL, n)]
    if "channel" in used and switches.width == "single":
        names.append("width")
    return ", ".join(f"{n}={getattr(switches, n)!r}" for n in names)


def _backend(x: Tensor, module: CBAM | ChannelAttention | SpatialAttention, norm: nn.BatchNorm2d | None) -> Backend:
    if module._unserved:
        return Backend("reference", f"no kernels for {module._unserved}")
    name = functional.backend_for(x)
    if name == "reference":
        return Backend(name, f"no kernels for {x.device.type} tensors, or switched off, or under a transform")
    if reason := functional.unserved(name, x, norm, module.switches.ties):
        return Backend("reference", f"no {name} kernels for {reason}")
    return Backend(name, "")
