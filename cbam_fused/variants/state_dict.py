"""State_dicts of public implementations: loading into our modules, and exporting from them."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from torch import Tensor, nn

from ..keywords import names_keywords
from .config import Switches
from .table import VARIANTS, Variant, resolve

# The switches that a state_dict does not show, by the half of CBAM.
HIDDEN = {
    "ca": ("act", "pools", "combine", "gate_place", "channel_gate"),
    "sa": ("spatial_gate", "spatial_order"),
}


class PublicNames(nn.Module):
    """A module that loads a state_dict with its own names or those of any variant, with ``strict=True``, at any depth.

    Weights of Linear layers and 1 x 1 convolutions convert to each other. If a variant has the maximum first, the
    input channels of the spatial convolution are swapped. Names of several variants are read as the module's own
    variant if it is one of them, else as the most similar one, with a warning if these variants differ in what a
    state_dict does not show. Other keys keep their names and are unexpected keys.
    """

    part: str | None = None
    variant: str
    switches: Switches

    def __prepare_scriptable__(self):
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: use torch.jit.trace, torch.export or torch.compile"
        )

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        left = _to_own_names(self, state_dict, prefix)
        if strict and left:
            error_msgs.append(left)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


@names_keywords
def export_state_dict(model: nn.Module, variant: str) -> dict[str, Tensor]:
    """The state_dict of a model, with every CBAM in the names, shapes and order of a variant.

    Args:
        model: a CBAM, ChannelAttention or SpatialAttention, or a model with any number of them.
        variant: a name in ``cbam_fused.variants.VARIANTS``.

    Returns:
        A dictionary in the model's order; other keys are unchanged. Tensors share memory where nothing was rearranged.

    Raises:
        ValueError: an unknown variant, no CBAM in the model, or a CBAM with unexpected or missing parameters for the
            variant; their names are in the message.
    """
    row = resolve(variant, {})[0]
    modules = _outermost(model)
    if not modules:
        raise ValueError(f"model must have a CBAM to export to variant {variant!r}, got none")
    names: dict[str, tuple[str, PublicNames]] = {}
    for prefix, module in modules.items():
        names |= {prefix + own: (prefix + other, module) for own, other in _export_names(prefix, module, row).items()}
    state = model.state_dict()
    if extra := [key for key in state if key not in names and any(key.startswith(prefix) for prefix in modules)]:
        raise ValueError(
            f"cannot export to variant {variant!r}: unexpected {', '.join(extra)}; "
            "remove parametrizations and pruning first"
        )
    result = {}
    for key, tensor in state.items():
        if key in names:
            name, module = names[key]
            result[name] = rearranged(key, tensor, _order(module, row), row.linear)
        else:
            result[key] = tensor
    return result


def _outermost(model: nn.Module) -> dict[str, PublicNames]:
    """The CBAMs of a model, and the masks that are not part of one, by their prefix."""
    found: dict[str, PublicNames] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(module, PublicNames) and not any(prefix.startswith(outer) for outer in found):
            found[prefix] = module
    return found


def _export_names(prefix: str, module: PublicNames, row: Variant) -> dict[str, str]:
    own, switches = module.switches, row.switches
    wanted = set(_state(replace(switches, **{name: getattr(own, name) for name in row.choices}), module))
    names: dict[str, str] = {}
    for half in _halves(module):
        names |= row.names(half, module.part is not None)
    present = _state(own, module)
    extra = [prefix + n for n in present if n not in wanted or n not in names]
    lacking = [prefix + n for n in sorted(wanted) if n not in present]
    if own.maps != switches.maps and "sa" in _halves(module):
        extra += [f"{prefix}sa.conv1.weight (the switch maps is {own.maps!r}, there it is {switches.maps!r})"]
    if extra or lacking:
        parts = [f"unexpected {', '.join(extra)}"] * bool(extra) + [f"missing {', '.join(lacking)}"] * bool(lacking)
        raise ValueError(f"cannot export to variant {row.name!r}: {'; '.join(parts)}")
    hidden = [f for f in _hidden(module, _halves(module)) if f not in (*row.choices, "spatial_order")]
    if differing := _differing(own, [row], hidden):
        values = ", ".join(f"{f}={getattr(switches, f)!r}" for f in differing)
        _warn(f"export: {row.name!r} has {values}, unlike this module")
    return {n: names[n] for n in present}


def _to_own_names(module: PublicNames, state_dict: dict[str, Tensor], prefix: str) -> str:
    """Rename the keys that the module has; the result names those of a variant that it does not have."""
    alone = module.part is not None
    rows = {half: _rows_with_names(half, alone, state_dict, prefix) for half in _halves(module)}
    shared = [row for row in VARIANTS.values() if all(row in found for found in rows.values() if found)]
    present = _state(module.switches, module)
    left: dict[str, list[str]] = {}
    for half, found in rows.items():
        if not found:
            continue
        row = _choose(module, shared or found, list(rows) if shared else [half])
        for own, other in row.names(half, alone).items():
            if prefix + other not in state_dict:
                continue
            if own in present:
                tensor = state_dict.pop(prefix + other)
                state_dict[prefix + own] = rearranged(own, tensor, _order(module, row), linear=False)
            elif own != other:  # PyTorch's message names the key, and ca and sa see it again
                left.setdefault(row.name, []).append(prefix + other)
    return "; ".join(
        f"variant={name!r} has the keys {', '.join(keys)}, this module does not" for name, keys in left.items()
    )


def _rows_with_names(half: str, alone: bool, state_dict: Mapping[str, Tensor], prefix: str) -> list[Variant]:
    """The variants whose names for this half match the most keys; empty if no key matches."""
    counts = {
        row.name: sum(prefix + other in state_dict for other in row.names(half, alone).values())
        for row in VARIANTS.values()
    }
    most = max(counts.values())
    return [row for row in VARIANTS.values() if most > 0 and counts[row.name] == most]


def _choose(module: PublicNames, rows: list[Variant], halves: list[str]) -> Variant:
    named = {row.name: row for row in rows}
    for name in ("tutorial", module.variant):  # the module's own names are the tutorial's
        if name in named:
            return named[name]
    hidden = _hidden(module, halves)
    row = min(rows, key=lambda row: len(_differing(module.switches, [row], hidden)))
    ambiguous = _differing(row.switches, rows, hidden)
    if row.order_varies and "spatial_order" in hidden and "spatial_order" not in ambiguous:
        ambiguous.append("spatial_order")
    differing = [f for f in _differing(module.switches, [row], hidden) if f != "spatial_order"]
    texts = []
    if ambiguous:
        values = ", ".join(f"{f}={getattr(row.switches, f)!r}" for f in ambiguous)
        texts.append(f"its keys, those of {', '.join(named)}, are ambiguous; assuming {values}")
    if differing:
        values = ", ".join(f"{f}={getattr(row.switches, f)!r}" for f in differing)
        texts.append(f"{row.name!r} has {values}, unlike this module")
    if texts:
        _warn(f"checkpoint: {', and '.join(texts)}; build the module with variant={row.name!r} to silence this")
    return row


def _hidden(module: PublicNames, halves: list[str]) -> list[str]:
    """The switches that a state_dict of these halves does not show."""
    whole = module.part is None and halves == _halves(module)
    return [f for half in halves for f in HIDDEN[half]] + ["residual"] * whole


def _differing(switches: Switches, rows: list[Variant], names: list[str]) -> list[str]:
    return [f for f in names if any(getattr(row.switches, f) != getattr(switches, f) for row in rows)]


def _halves(module: PublicNames) -> list[str]:
    if module.part is not None:
        return [module.part]
    return [half for half, there in (("ca", module.switches.channel), ("sa", module.switches.spatial)) if there]


def _state(switches: Switches, module: PublicNames) -> list[str]:
    """Own names of the state that a module of this kind has with these switches."""
    if module.part is None:
        return list(switches.state())
    outer = f"{module.part}."
    return [name.removeprefix(outer) for name in switches.state() if name.startswith(outer)]


def _order(module: PublicNames, row: Variant) -> str:
    return (module if module.variant == row.name else row).switches.spatial_order


def rearranged(name: str, tensor: Tensor, order: str, linear: bool) -> Tensor:
    """Convert a tensor between the module and a variant with this order and kind of MLP; both ways are the same."""
    if not isinstance(tensor, Tensor):
        return tensor  # load_state_dict raises a clear error
    if name.endswith(("fc1.weight", "fc2.weight")) and tensor.dim() > 1 and tensor.shape[2:].numel() == 1:
        return tensor.reshape(tensor.shape[:2] if linear else (*tensor.shape[:2], 1, 1))
    if name.endswith("conv1.weight") and order == "max_mean" and tensor.dim() == 4 and tensor.shape[1] == 2:
        return tensor.flip(1)
    return tensor


@cache
def _warn(text: str) -> None:
    """Warn once for each text, for any number of CBAMs."""
    warnings.warn(text, stacklevel=2)
