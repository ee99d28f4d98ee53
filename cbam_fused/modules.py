"""The drop-in module: the parameters of the reference, the computation of the fused kernels."""

from torch import Tensor

from . import functional, reference
from .reference import ChannelAttention, SpatialAttention

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]


class CBAM(reference.CBAM):
    """Fused CBAM: same arguments, parameters, initial values and results as :class:`cbam_fused.reference.CBAM`.

    A state_dict goes from one to the other in both directions with ``strict=True``. The sub-modules
    ``ca`` and ``sa`` hold the parameters and still return masks when called themselves, but ``forward``
    does not call them, so hooks registered on them do not run.

    Shape: (N, C, H, W) -> (N, C, H, W), in x's dtype and memory layout.
    Raises: what :func:`cbam_fused.functional.cbam` raises.
    Source: Woo et al., ECCV 2018.
    """

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """relu(CBAM(x) + residual), each part only where asked for, in one pass."""
        return functional.cbam(x, *self.weights(), residual=residual, relu=relu)
