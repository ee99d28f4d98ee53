"""The functions that a foreign module may be, by its layers and the table of variants."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from .. import modules
from ..variants.config import ALLOWED, Switches
from ..variants.state_dict import HIDDEN, PublicNames, rearranged
from ..variants.table import VARIANTS, Variant
from .layers import Layers


@dataclass(frozen=True)
class Proof:
    """The function of a module: a CBAM or one of the two masks, with these switches."""

    layers: Layers
    switches: Switches
    mask: bool
    row: Variant

    def build(self, switches: Switches) -> PublicNames:
        """A fused module of this function."""
        values = {f.name: getattr(switches, f.name) for f in fields(Switches)}
        if self.row.name == "tutorial":
            del values["spatial_order"]
        arguments = {"variant": self.row.name, **values}
        if not self.mask:
            return modules.CBAM(self.layers.channels, 1, self.layers.kernel_size, **arguments)
        if switches.channel:
            return modules.ChannelAttention(self.layers.channels, 1, **arguments)
        return modules.SpatialAttention(self.layers.kernel_size, **arguments)

    def take(self, module: PublicNames, original: nn.Module) -> PublicNames:
        """Copy the state of the original, and the settings of its BatchNorm."""
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in self.layers.state(original).items():
            target = own[name.partition(".")[2] if self.mask else name]
            target.data = rearranged(name, tensor.detach(), self.switches.spatial_order, linear=False).clone()
            target.requires_grad_(tensor.requires_grad)
        if self.layers.norm:
            norm: Any = module.get_submodule("bn" if self.mask else "sa.bn")
            old: Any = original.get_submodule(self.layers.norm)
            norm.eps, norm.momentum = old.eps, old.momentum
        return module

    def description(self) -> str:
        used = [*HIDDEN["ca"]] * self.switches.channel + [*HIDDEN["sa"]] * self.switches.spatial + ["residual"]
        used += ["bias", "spatial_bias", "norm"]
        values = [
            f"{f}={getattr(self.switches, f)!r}"
            for f in used
            if getattr(self.switches, f) != getattr(self.row.switches, f)
        ]
        part = ("channel mask" if self.switches.channel else "spatial mask") if self.mask else ""
        return " ".join(filter(None, (self.row.name, part, f"with {', '.join(values)}" if values else "")))


def candidates(module: nn.Module, layers: Layers) -> Iterator[Proof]:
    """The possible functions of a module: the table, both orders of the maps, with and without residual."""
    whole = layers.switches.channel and layers.switches.spatial
    seen = set()
    hidden = [*HIDDEN["ca"]] * layers.switches.channel + [*HIDDEN["sa"]] * layers.switches.spatial + ["ties"]
    for row, order, residual, mask in itertools.product(
        VARIANTS.values(), ALLOWED["spatial_order"], (False, True), (False,) if whole else (False, True)
    ):
        for chosen in _chosen(row, hidden):
            values = {f: getattr(row.switches, f) for f in hidden} | chosen | {"residual": residual}
            if layers.switches.spatial:
                values["spatial_order"] = order
            switches = replace(layers.switches, **values)
            if (switches, mask) in seen or (mask and residual):
                continue
            seen.add((switches, mask))
            yield Proof(layers, switches, mask, _row(module, switches, mask))


def _chosen(row: Variant, hidden: list[str]) -> Iterator[dict[str, str]]:
    """The values of these switches that users of a row can choose, the row's defaults first."""
    names = [name for name in row.choices if name in hidden and name != "pools"]
    values = [sorted(ALLOWED[name], key=lambda v: v != getattr(row.switches, name)) for name in names]
    return (dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values))


def _row(module: nn.Module, switches: Switches, mask: bool) -> Variant:
    """The variant with the module's names, the most similar one of several; the tutorial if there is none."""
    keys = {*module.state_dict()}

    def has_the_names(row: Variant) -> bool:
        halves = [half for half, there in (("ca", switches.channel), ("sa", switches.spatial)) if there]
        return keys <= {name for half in halves for name in row.names(half, mask).values()}

    def differences(row: Variant) -> int:
        return sum(getattr(row.switches, f.name) != getattr(switches, f.name) for f in fields(Switches))

    return min(filter(has_the_names, VARIANTS.values()), key=differences, default=VARIANTS["tutorial"])
