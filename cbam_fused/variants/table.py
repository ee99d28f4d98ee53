"""The table of public CBAM implementations: switches, defaults, state_dict names, source and licence.

It matches names and formulas; it contains no code of these sources. docs/guide/variants.md is generated from it.
"""

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from ..keywords import wrong_keyword
from .config import STATE, Switches


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A public implementation.

    Attributes:
        name, source, licence: our name, its origin, and the origin's licence.
        switches, reduction, kernel_size: its defaults; ``choices`` are the switches that its users can set.
        call: "A": y = cbam(x); "B": two modules return masks, and the caller multiplies x with them.
        ca, sa: names of the two sub-modules, empty if there are none; fc1, fc2, conv, norm: names of their layers.
        order_varies: copies with the same names have the two maps in the other order.
        linear: whether the MLP has nn.Linear, weights (R, C), instead of 1 x 1 convolutions, (R, C, 1, 1).
    """

    name: str
    source: str
    licence: str
    switches: Switches
    reduction: int = 16
    kernel_size: int = 7
    choices: tuple[str, ...] = ()
    call: str = "A"
    ca: str = ""
    fc1: str = ""
    fc2: str = ""
    sa: str = ""
    conv: str = ""
    norm: str = ""
    linear: bool = False
    order_varies: bool = False

    def names(self, part: str, alone: bool) -> dict[str, str]:
        """From our names for the half ``part``, "ca" or "sa", to the variant's; alone: as a separate module."""
        layers = {"ca.fc1": self.fc1, "ca.fc2": self.fc2, "sa.conv1": self.conv, "sa.bn": self.norm}
        outer = "" if alone or not getattr(self, part) else f"{getattr(self, part)}."
        result = {}
        for name in STATE:
            layer, _, leaf = name.rpartition(".")
            if name.startswith(f"{part}.") and layers[layer]:
                result[name.removeprefix(f"{part}.") if alone else name] = f"{outer}{layers[layer]}.{leaf}"
        return result


_TUTORIAL = Switches()
_FLOOR = Switches(width="floor")
_OFFICIAL = Switches(width="floor", bias=True, norm=True, norm_momentum=0.01, spatial_order="max_mean")
_EXTERNAL = Switches(width="floor", spatial_bias=True, spatial_order="max_mean")
_PEACHY = Switches(width="floor", bias=True, residual=True, spatial_order="max_mean")
_TIMM = Switches(width="nearest", norm=True, ties="even")
_SE = Switches(width="floor", bias=True, pools=("avg",), spatial=False)
_OF_SE = ("act", "channel_gate")

VARIANTS: dict[str, Variant] = {}


def _add(name: str, source: str, licence: str, switches: Switches, ca: str, sa: str, **more: Any) -> None:
    """Add a row; ca is "sub-module: first layer, second layer", sa "sub-module: convolution, BatchNorm"."""
    outer, _, layers = ca.rpartition(": ")
    fc1, _, fc2 = layers.partition(", ")
    spatial, _, layers = sa.rpartition(": ")
    conv, _, norm = layers.partition(", ")
    VARIANTS[name] = Variant(
        name=name,
        source=source,
        licence=licence,
        switches=switches,
        ca=outer,
        fc1=fc1,
        fc2=fc2,
        sa=spatial,
        conv=conv,
        norm=norm,
        **more,
    )


# Tutorials: bias-free 1 x 1 convolutions, or Linear layers, without BatchNorm. conv.weight and conv1.weight exist with
# both orders of the maps.
_add("tutorial", "this package; most tutorials", "MIT", _TUTORIAL, "ca: fc1, fc2", "sa: conv1, bn")
_WIDTH_16 = replace(_TUTORIAL, width="sixteenth")
_add("luuuyi", "luuuyi/CBAM.PyTorch", "none", _WIDTH_16, "ca: fc.0, fc.2", "sa: conv1", call="B", order_varies=True)
_CA, _SA = "channelattention: fc1, fc2", "spatialattention: conv1"
_add("bubbliiiing", "bubbliiiing, nets/attention.py", "MIT", _FLOOR, _CA, _SA, reduction=8)
_CA = "ca: sharedMLP.0, sharedMLP.2"
_add("shared_mlp", "copies with the argument rotio", "none", _FLOOR, _CA, "sa: conv1", order_varies=True)
_add("shared_mlp_conv", "copies with the argument rotio", "none", _FLOOR, _CA, "sa: conv", order_varies=True)
_CA, _SA = "channel_attention: shared_MLP.0, shared_MLP.2", "spatial_attention: conv2d"
_add("unet", "U-Net tutorials", "none", replace(_FLOOR, spatial_bias=True), _CA, _SA)
_CA, _SA = "channel_attention: fc.0, fc.2", "spatial_attention: conv"
_add("leomjl", "LeoMjl/CBAM-ResNet", "none", _FLOOR, _CA, _SA, order_varies=True)
_CA = "channel_attention: shared_mlp.0, shared_mlp.2"
_add("shared_mlp_snake", "copies in snake case", "none", _FLOOR, _CA, _SA, order_varies=True)
_CA, _SA = "channel_attn: mlp.0, mlp.2", "spatial_attn: conv1"
_add("mlp", "copies with the name channel_attn", "none", _FLOOR, _CA, _SA, order_varies=True)
_CA, _SA = "channel_attention: f1, f2", "spatial_attention: conv"
_add("yolov5", "YOLOv5 forks, after mohenghui", "none", _FLOOR, _CA, _SA, order_varies=True)
_MAX_FIRST = replace(_FLOOR, spatial_order="max_mean")
_add("cbam_layer", "CBAMLayer of tutorials", "none", _MAX_FIRST, "mlp.0, mlp.2", "conv")
_CA, _SA = "channel_attn: fc.0, fc.2", "spatial_attn: conv"
_add("linear", "Python course, day 50", "none", _FLOOR, _CA, _SA, linear=True, order_varies=True)
_CA, _SA = "ca: se.0, se.2", "sa: conv"
_SUM = replace(_EXTERNAL, residual=True)
_add("external_attention", "External-Attention-pytorch; fightingcv-attention", "MIT", _SUM, _CA, _SA, kernel_size=49)
_add("external_attention_yolo", "YOLO copies, after z1069614715", "none", _EXTERNAL, _CA, _SA)

# With biases in the MLP: the authors' code and its forks.
_FORK = {"linear": True, "choices": ("spatial", "pools")}
_SA = "SpatialGate: spatial.conv, spatial.bn"
_add("official", "Jongchan/attention-module", "MIT", _OFFICIAL, "ChannelGate: mlp.1, mlp.3", _SA, **_FORK)
_add("official_no_flatten", "forks without Flatten", "none", _OFFICIAL, "ChannelGate: mlp.0, mlp.2", _SA, **_FORK)
_CA = "channel_attention: shared_mlp.1, shared_mlp.3"
_SA = "spatial_attention: spatial_attention.0, spatial_attention.1"
_add("official_renamed", "Ugenteraan/ResNet-50-CBAM-PyTorch", "none", _OFFICIAL, _CA, _SA, **_FORK)
_CA, _SA = "ch_gate: mlp.fc1, mlp.fc2", "sp_gate: conv.conv, conv.bn"
_add("pytorchcv", "pytorchcv", "MIT", replace(_OFFICIAL, norm_momentum=0.1), _CA, _SA, linear=True)
_add("peachypie98", "Peachypie98/CBAM", "none", _PEACHY, "cam: linear.0, linear.2", "sam: conv", linear=True)
_SILU = replace(_TUTORIAL, bias=True, act="silu", spatial_bias=True)
_add("hyso", "hyso", "MIT", _SILU, "fc1, fc2", "conv_spatial", linear=True)
_CA, _SA = "channel_attention: fc.0.conv, fc.1.conv", "spatial_attention: conv.conv"
_BIASES = replace(_FLOOR, bias=True, spatial_bias=True)
_add("mmyolo", "open-mmlab/mmyolo", "GPL-3.0", _BIASES, _CA, _SA, choices=("act",))

# timm, ultralytics.
_CA, _SA = "channel: fc1, fc2", "spatial: conv.conv, conv.bn"
_TIMM_CHOICES = ("bias", "act", "width", "channel_gate", "spatial_gate")
_add("timm", "timm, CbamModule", "Apache-2.0", _TIMM, _CA, _SA, choices=_TIMM_CHOICES)
_LIGHT = replace(_TIMM, combine="mean", maps="mean")
_add("timm_light", "timm, LightCbamModule", "Apache-2.0", _LIGHT, _CA, _SA, choices=_TIMM_CHOICES[:3])
_SINGLE = Switches(width="single", bias=True, pools=("avg",))
_add("ultralytics", "ultralytics", "AGPL-3.0", _SINGLE, "channel_attention: fc", "spatial_attention: cv1")

# The channel gate only.
_SOURCE = "torchvision, SqueezeExcitation"
_add("torchvision_se", _SOURCE, "BSD-3-Clause", _SE, "fc1, fc2", "", reduction=4, choices=_OF_SE)
_SE_8 = replace(_SE, width="nearest_8")
_add("timm_se", "timm, SEModule", "Apache-2.0", _SE_8, "fc1, fc2", "", choices=(*_OF_SE, "bias"))
_MAXPOOL: dict[str, Any] = {"pools": ("avg", "max"), "combine": "mean", "ties": "even"}
_SE_MAX, _SOURCE = replace(_SE_8, **_MAXPOOL), "timm, SEModule with add_maxpool"
_add("timm_se_maxpool", _SOURCE, "Apache-2.0", _SE_MAX, "fc1, fc2", "", choices=(*_OF_SE, "bias"))
_ROUNDED = replace(_SE, width="round")
_SOURCE, _CA = "timm, SqueezeExcite of its EfficientNets", "conv_reduce, conv_expand"
_add("timm_squeeze_excite", _SOURCE, "Apache-2.0", _ROUNDED, _CA, "", reduction=4, choices=_OF_SE)
_EFFECTIVE = replace(_SE, width="single", channel_gate="hard_sigmoid")
_add("timm_effective_se", "timm, EffectiveSEModule", "Apache-2.0", _EFFECTIVE, "fc", "", choices=_OF_SE[1:])
_EFFECTIVE_MAX, _SOURCE = replace(_EFFECTIVE, **_MAXPOOL), "timm, EffectiveSEModule with add_maxpool"
_add("timm_effective_se_maxpool", _SOURCE, "Apache-2.0", _EFFECTIVE_MAX, "fc", "", choices=_OF_SE[1:])
_SE_CHOICES = {"linear": True, "choices": ("residual", *_OF_SE)}
_add("monai_se", "MONAI, ChannelSELayer", "Apache-2.0", _SE, "fc.0, fc.2", "", reduction=2, **_SE_CHOICES)


def resolve(variant: str, switches: dict[str, Any], owner: type | None = None) -> tuple[Variant, Switches]:
    """The row of a variant, and its switches with the given overrides.

    Args:
        owner: the class that got the switches, for the error about an unknown keyword.

    Raises:
        ValueError: an unknown variant (with the nearest names) or an invalid value of a switch.
        TypeError: an unknown switch, with the nearest keywords of the owner.
    """
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise ValueError(f"variant must be a name in VARIANTS, got {variant!r}; {_nearest(str(variant), VARIANTS)}")
    row = VARIANTS[variant]
    known = [f.name for f in fields(Switches)]
    for name in switches:
        if name not in known:
            own = [n for n in inspect.signature(owner).parameters if n != "switches"] if owner else []
            raise wrong_keyword(owner.__name__ if owner else "Switches", name, (*own, *known))
    if variant == "tutorial" and switches.get("spatial_order", "mean_max") != "mean_max":
        raise ValueError(
            f"spatial_order must be mean_max for variant 'tutorial', got {switches['spatial_order']!r}; "
            "swap the channels of sa.conv1.weight with flip(1), or use another variant"
        )
    return row, replace(row.switches, **switches)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"the nearest names are {', '.join(near)}" if near else f"there are {', '.join(known)}"
