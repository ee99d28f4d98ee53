"""CBAM in plain PyTorch: the ground truth of the tests, and the fallback for calls without a kernel.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018. The defaults are those of most code bases:
two bias-free 1x1 convolutions shared by both pools, and a k x k convolution over [mean, max] without BatchNorm.
:class:`cbam_fused.variants.config.Switches` lists the differences of other implementations.
"""

from .functions import GATES, TIES, TUTORIAL, cbam, channel_gate, gated, spatial_gate, spatial_logits
from .modules import CBAM, ChannelAttention, SpatialAttention

__all__ = [
    "CBAM",
    "GATES",
    "TIES",
    "TUTORIAL",
    "ChannelAttention",
    "SpatialAttention",
    "cbam",
    "channel_gate",
    "gated",
    "spatial_gate",
    "spatial_logits",
]
