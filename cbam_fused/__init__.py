"""cbam_fused: CBAM (Woo et al., ECCV 2018) as fused kernels, a drop-in for the PyTorch modules."""

from . import functional, reference
from .modules import CBAM, ChannelAttention, SpatialAttention
from .surgery import insert_cbam

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention", "functional", "insert_cbam", "reference"]
