"""replace_cbam: find the CBAMs of a model by structure and behaviour, and put fused ones in their place."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from . import modules
from .checkpoints import HIDDEN, PublicNames, rearranged
from .pairs import fuse_pairs
from .switches import STATE, Switches
from .variants import VARIANTS, Variant

TIES = ("first", "exact")

# float64 on both sides: what differs by more is another function.
TOLERANCE = {"rtol": 1e-8, "atol": 1e-9}


@dataclass
class Report:
    """What replace_cbam did.

    Attributes:
        replaced: name of each module that was replaced, and the variant that it was, with the switches that differ.
        skipped: name of each module that looks like a CBAM but was left alone, and why.
        fused: name of each module whose pair of masks became one fused call, by the names of the pair.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    fused: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def replace_cbam(model: nn.Module, *, ties: str = "first") -> Report:
    """Replace every CBAM of a model, in place, by a fused one of the same function, weights included.

    A module is a candidate if its layers have the shapes of a CBAM or of one of its two masks; class names do not
    count. It is replaced if one of the functions in ``cbam_fused.variants`` has the same outputs, gradients and
    BatchNorm statistics, in eval and training mode, on random input and random weights, in float64 copies on the
    CPU. The new module has the weights (as new parameters: build the optimiser afterwards), the training flags,
    device, dtype and hooks of the old one, and loads its state_dict if that has the names of a known variant. In
    modules that multiply the two masks in themselves, ``x = ca(x) * x; x = sa(x) * x``, the masks are replaced, and
    where torch.fx finds exactly this pattern it becomes one call; such a module gets a subclass of its class, for
    its present attributes, and can no longer be pickled as a whole. A squeeze-and-excitation block is no CBAM.

    Args:
        model: any module. If it is a CBAM itself it cannot be replaced in place.
        ties: which elements get the gradient of a maximum that several reach, where a module (timm's) spreads it
            evenly. "first": the first one, as in all others, which the kernels serve; the same function, and the same
            gradients wherever no maxima are tied. "exact": evenly, on the reference route.

    Returns:
        A report of what was replaced, skipped and why, and fused.

    Raises:
        ValueError: another value of ties.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, got {ties!r}")
    report = Report()
    uses = _uses(model)
    new: dict[nn.Module, nn.Module] = {}
    done: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in done):
            continue
        if isinstance(module, modules.CBAM | modules.ChannelAttention | modules.SpatialAttention):
            done.append(name)
            continue
        layers = Layers.of(module)
        suspicious = re.search("cbam", type(module).__name__, re.IGNORECASE)
        if layers is None:
            if suspicious and not any(Layers.of(m) for m in module.modules()):
                report.skipped[name] = "its layers are not those of a CBAM"
            continue
        proof, reason = None, _obstacle(module, uses) if name else "it is the model itself"
        if not reason:
            proof, reason = _prove(module, layers)
        if proof is None:
            if suspicious or (layers.fc1 and layers.conv) or re.search("attention|gate", type(module).__name__, re.I):
                report.skipped[name] = reason
            continue
        new[module] = proof.fused(module, ties)
        report.replaced[name] = proof.description()
        done.append(name)
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child in new:
                parent._modules[child_name] = new[child]
    for name, module in model.named_modules():
        if pairs := fuse_pairs(module):
            report.fused[name] = pairs
    return report


@dataclass(frozen=True)
class Layers:
    """The names of a module's layers that have parameters, by their role; empty if it has none in that role."""

    fc1: str
    fc2: str
    conv: str
    norm: str
    channels: int
    hidden: int
    kernel_size: int
    switches: Switches

    @classmethod
    def of(cls, module: nn.Module) -> "Layers | None":
        """None if the layers are not those of a CBAM or of one of its masks."""
        mlp, conv, norm = [], [], []
        for name, layer in module.named_modules():
            if not layer._parameters and not layer._buffers:
                continue
            shape = layer.weight.shape if isinstance(layer, nn.Linear | nn.Conv2d) else ()
            if len(shape) == 4 and shape[0] == 1 and shape[1] in (1, 2) and 1 < shape[2] == shape[3] and shape[3] % 2:
                conv.append(name)
            elif len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
                mlp.append(name)
            elif isinstance(layer, nn.BatchNorm2d) and layer.num_features == 1 and len([*layer.state_dict()]) == 5:
                norm.append(name)
            else:
                return None
            if not name or len(mlp) > 2 or len(conv) > 1 or len(norm) > len(conv):
                return None
        if not mlp and not conv:
            return None
        found = [module.get_submodule(name) for name in (*mlp, *conv)]
        shapes = [layer.weight.shape[:2] for layer in found[: len(mlp)]]
        biases = [layer.bias is not None for layer in found]
        single = len(mlp) == 1 and shapes[0][0] == shapes[0][1]
        if mlp and not single and (len(mlp) != 2 or shapes[0] != shapes[1][::-1] or biases[0] != biases[1]):
            return None
        kernel = found[-1].weight.shape if conv else (1, 2, 7, 7)
        switches = Switches(
            channel=bool(mlp),
            spatial=bool(conv),
            width="single" if single else int(shapes[0][0]) if mlp else 1,
            bias=bool(mlp) and biases[0],
            maps="both" if kernel[1] == 2 else "mean",
            spatial_bias=bool(conv) and biases[-1],
            norm=bool(norm),
        )
        fc1, fc2, *_ = (*mlp, "", "")
        channels, hidden = (shapes[0][1], shapes[0][0]) if mlp else (5, 1)
        return cls(fc1, fc2, "".join(conv), "".join(norm), channels, hidden, kernel[2], switches)

    def state(self, module: nn.Module, order: str) -> dict[str, Tensor]:
        """The module's state under our names, in our shapes and order."""
        names = {"ca.fc1": self.fc1, "ca.fc2": self.fc2, "sa.conv1": self.conv, "sa.bn": self.norm}
        result = {}
        for own in STATE:
            layer, _, leaf = own.rpartition(".")
            tensor = getattr(module.get_submodule(names[layer]), leaf, None) if names[layer] else None
            if tensor is not None:
                result[own] = rearranged(own, tensor, order, linear=False)
        return result


@dataclass(frozen=True)
class Proof:
    """A module is this function: a map, or one of the two masks, with these switches."""

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
        """The state of the original, and what its BatchNorm has besides."""
        state = self.layers.state(original, self.switches.spatial_order)
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in state.items():
            target = own[name.partition(".")[2] if self.mask else name]
            target.data = tensor.detach().clone()
            target.requires_grad_(tensor.requires_grad)
        if self.layers.norm:
            norm, old = (module if self.mask else module.sa).bn, original.get_submodule(self.layers.norm)
            norm.eps, norm.momentum = old.eps, old.momentum
        return module

    def fused(self, original: nn.Module, ties: str) -> PublicNames:
        """The module that takes the place of the original."""
        module = self.take(self.build(self.switches if ties == "exact" else replace(self.switches, ties="first")), original)
        module.train(original.training)
        if self.layers.norm:
            (module if self.mask else module.sa).bn.train(original.get_submodule(self.layers.norm).training)
        for name in _HOOKS:
            module.__dict__[name] = original.__dict__[name]
        return module

    def description(self) -> str:
        used = [*HIDDEN["ca"]] * self.switches.channel + [*HIDDEN["sa"]] * self.switches.spatial + ["residual"]
        used += ["bias", "spatial_bias", "norm"]
        values = [f"{f}={getattr(self.switches, f)!r}" for f in used if getattr(self.switches, f) != getattr(self.row.switches, f)]
        part = ("channel mask" if self.switches.channel else "spatial mask") if self.mask else ""
        return " ".join(filter(None, (self.row.name, part, f"with {', '.join(values)}" if values else "")))


_HOOKS = tuple(
    name for name in nn.Module().__dict__ if "hooks" in name and "state_dict" not in name or name == "_is_full_backward_hook"
)


def _uses(model: nn.Module) -> dict[int, int]:
    """How many names each parameter has."""
    count: dict[int, int] = {}
    for module in model.modules():
        for p in module._parameters.values():
            count[id(p)] = count.get(id(p), 0) + 1
    return count


def _obstacle(module: nn.Module, uses: dict[int, int]) -> str:
    """Why a module cannot be replaced whatever it computes; empty if it can."""
    for name, child in module.named_modules():
        if name and any(child.__dict__[hooks] for hooks in _HOOKS if hooks != "_is_full_backward_hook"):
            return f"its sub-module {name} has hooks, which would not run"
    for name, p in module.named_parameters():
        if uses[id(p)] > 1:
            return f"its parameter {name} is shared with another module"
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            return f"its parameter {name} has hooks, which would not run"
    return ""


def _functions(module: nn.Module, layers: Layers) -> Iterator[Proof]:
    """What the module may be: the functions in the table, with either order of the maps, with and without residual."""
    keys = {*module.state_dict()}

    def named(row: Variant) -> bool:
        own = [f"{half}.{name}" for half, name in ()]
        return keys <= {*row.names("ca", False).values(), *row.names("sa", False).values()} or own == [keys]

    rows = sorted(VARIANTS.values(), key=lambda row: not named(row))
    seen = set()
    for row in rows:
        hidden = {f: getattr(row.switches, f) for f in (*HIDDEN["ca"], *HIDDEN["sa"], "residual", "ties")}
        for flip in (False, True):
            pass
    yield from seen
