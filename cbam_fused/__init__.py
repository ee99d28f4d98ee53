"""cbam_fused: CBAM (Woo et al., ECCV 2018) as fused kernels, a drop-in replacement for the PyTorch modules."""

from . import exported_ops as exported_ops  # registers the operators of exported programs
from . import functional, reference
from .modules import CBAM, ChannelAttention, SpatialAttention
from .ops import flops as flops  # registers the formulas for torch.utils.flop_counter
from .replace.replace import replace_cbam
from .routing import use_backend
from .surgery import attention_maps, freeze_except, insert_cbam, parameter_table, remove_cbam, unfreeze
from .variants.state_dict import export_state_dict
from .variants.table import VARIANTS

__all__ = [
    "CBAM",
    "VARIANTS",
    "ChannelAttention",
    "SpatialAttention",
    "attention_maps",
    "export_state_dict",
    "freeze_except",
    "functional",
    "insert_cbam",
    "parameter_table",
    "reference",
    "remove_cbam",
    "replace_cbam",
    "unfreeze",
    "use_backend",
]
