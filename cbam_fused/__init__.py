"""cbam_fused: CBAM (Woo et al., ECCV 2018) as fused kernels, a drop-in for the PyTorch modules."""

from . import functional, reference
from .checkpoints import export_state_dict
from .modules import CBAM, ChannelAttention, SpatialAttention
from .replace import replace_cbam
from .surgery import insert_cbam
from .variants import VARIANTS

__all__ = [
    "CBAM",
    "VARIANTS",
    "ChannelAttention",
    "SpatialAttention",
    "export_state_dict",
    "functional",
    "insert_cbam",
    "reference",
    "replace_cbam",
]
