"""replace_cbam: replaces the CBAMs of a model, whatever their names, by fused modules."""

import re
from dataclasses import dataclass, field

import torch
from torch import nn

from .. import modules, reference
from ..hooks import has_hooks
from ..surgery.freezing import BEFORE
from ..surgery.generators import kept_generators
from ..variants.state_dict import PublicNames
from .candidates import Proof
from .fuse_masks import fuse_pairs
from .holders import held_elsewhere
from .layers import Layers
from .match import HOOKS, prove, takes_one_argument

STATE_DICT_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


@dataclass
class Report:
    """The result of replace_cbam.

    Attributes:
        replaced: name of each replaced module, and its variant with the switches that differ.
        skipped: name of each module that looks like a CBAM but was left alone, and the reason.
        fused: name of each module whose pair of masks became one fused call, and the names of the pair.
        unfused: name of each module with both masks that was left alone, so each mask runs by itself, and the reason.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    fused: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    unfused: dict[str, str] = field(default_factory=dict)


def replace_cbam(model: nn.Module) -> Report:
    """Replace every CBAM of a model, in place, by a fused one with the same mathematics and weights.

    A module is a candidate if its layers have the shapes of a CBAM or of one of its two masks; class names do not
    matter. It is replaced if a variant in ``cbam_fused.variants`` has the same outputs, gradients and BatchNorm
    statistics, in eval and training mode, on random input and random weights, in float64 copies on the CPU. The new
    module has the weights (as new parameters: build the optimiser afterwards), training flags, device, dtype and hooks
    of the old one, and loads its state_dict if that has the names of a known variant. A module is left alone if its
    layers, parameters or state_dict have hooks, which would be lost; if its forward has more than one argument; or if
    another module shares its layers or parameters. If a caller multiplies x with both masks,
    ``x = ca(x) * x; x = sa(x) * x``, and torch.fx finds exactly this pattern, it becomes one call. Such a caller gets
    a subclass of its class, for its current attributes, and can no longer be pickled as a whole.

    Args:
        model: any module. A model that is a CBAM itself cannot be replaced in place.

    Returns:
        A report of replaced, skipped and fused modules, with reasons.
    """
    report = Report()
    with kept_generators(), torch.device("cpu"):  # building modules must not advance the caller's generators
        new = _replacements(model, report)
    _rename_frozen(model, new)
    for parent in list(model.modules()):
        for child_name, child in parent._modules.items():
            if child in new:
                parent._modules[child_name] = new[child]
    for name, module in model.named_modules():
        pairs, reason = fuse_pairs(module)
        if pairs:
            report.fused[name] = pairs
        elif reason:
            report.unfused[name] = reason
    return report


def _replacements(model: nn.Module, report: Report) -> dict[nn.Module, PublicNames]:
    """The new module for each module to replace; changes nothing."""
    owners, held = _owners(model), held_elsewhere(model)
    new: dict[nn.Module, PublicNames] = {}
    done: list[str] = []
    suspects: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in done):
            continue
        if isinstance(module, modules.CBAM | modules.ChannelAttention | modules.SpatialAttention):
            done.append(name)
            continue
        suspicious = "cbam" in type(module).__name__.lower()
        layers = Layers.of(module)
        if layers is None:
            suspects += [name] * suspicious
            continue
        whole = layers.fc1 and layers.conv
        if whole and any(len(child.state_dict()) == len(module.state_dict()) for child in module.children()):
            continue  # a wrapper of the next module
        proof, reason = None, _obstacle(module, owners, held) if name else "it is the model itself"
        if not reason:
            proof, reason = prove(module, layers)
        if proof is not None:
            new[module] = _fused(proof, module)
            report.replaced[name] = proof.description()
            done.append(name)
        elif suspicious or whole or re.search("attention|gate|squeeze|excit", type(module).__name__, re.I):
            report.skipped[name] = reason
    for name in suspects:
        inside = [other for other in (*done, *report.skipped, *suspects) if other != name]
        if name and not any(other.startswith(f"{name}.") for other in inside):
            report.skipped[name] = "its layers are not those of a CBAM"
    return new


def _fused(proof: Proof, original: nn.Module) -> PublicNames:
    """The replacement of the original."""
    module = proof.take(proof.build(proof.switches), original)
    module.train(original.training)
    if proof.layers.norm:
        module.get_submodule("bn" if proof.mask else "sa.bn").train(original.get_submodule(proof.layers.norm).training)
    for name in (*HOOKS, "_is_full_backward_hook"):
        module.__dict__[name] = original.__dict__[name]
    return module


def _rename_frozen(model: nn.Module, new: dict[nn.Module, PublicNames]) -> None:
    """Rename the parameters that freeze_except recorded, for unfreeze."""
    for holder in model.modules():
        before = holder.__dict__.get(BEFORE, {})
        for prefix, old in holder.named_modules() if before else ():
            if old not in new:
                continue
            names = {id(p): n for n, p in old.named_parameters()}
            state = Layers.of(old).state(old)  # type: ignore[union-attr]  # prove() found them
            part = f"{new[old].part}."
            moves = {f"{prefix}.{n.removeprefix(part)}": f"{prefix}.{names.get(id(t))}" for n, t in state.items()}
            before |= {to: before.pop(name) for to, name in moves.items() if name in before}


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that hold each module and each parameter, once per name."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for held in (*module._modules.values(), *module._parameters.values()):
            owners.setdefault(id(held), []).append(module)
    return owners


def _obstacle(module: nn.Module, owners: dict[int, list[nn.Module]], held: dict[int, str]) -> str:
    """Why a module cannot be replaced, regardless of its function; empty if it can."""
    if type(module).forward is not reference.CBAM.forward and not takes_one_argument(module):
        return "its forward has more than one argument"
    inside = {*module.modules()}
    for name, child in module.named_modules():
        whose = f"its sub-module {name}" if name else "it"
        if name and not inside.issuperset(owners[id(child)]):
            return f"{whose} is shared with another module"
        if id(child) in held:
            return f"{whose} is also held by {held[id(child)]}, which would keep the old module"
        if BEFORE in child.__dict__:
            return f"{whose} was frozen by its own call of freeze_except; unfreeze it first"
        if name and has_hooks(child):
            return f"{whose} has hooks, which would not run"
        if any(getattr(child, hooks) for hooks in STATE_DICT_HOOKS):
            return f"{whose} has hooks of its state_dict, which would not run"
    for name, p in module.named_parameters():
        if len(owners[id(p)]) > 1:
            return f"its parameter {name} is shared with another module"
        if id(p) in held:
            return f"its parameter {name} is also held by {held[id(p)]}, which would keep the old one"
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            return f"its parameter {name} has hooks, which would not run"
    return ""
