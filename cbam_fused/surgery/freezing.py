"""Training a part of a model, and a table of trainable parameters."""

import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..keywords import names_keywords
from .class_swap import Substitute, restore, substitute
from .selection import find_cbams, select, unwrapped

HEADS = ("fc", "classifier", "head")
BEFORE = "_requires_grad_before_freezing"  # on a frozen model: requires_grad of its parameters by name
OWN = "_own_requires_grad_before_freezing"  # on each of its modules: the same for its own parameters
PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")  # names after register_parametrization

Part = str | re.Pattern | Callable[[str, nn.Module], bool]


class FrozenStatistics(Substitute):
    """A BatchNorm that stays in eval mode when its network enters training mode."""

    def train(self, mode: bool = True):
        return super().train(False)


@names_keywords
def freeze_except(model: nn.Module, *parts: Part, bn_eval: bool = True) -> None:
    """Freeze everything except the given parts, in place, until :func:`unfreeze`.

    Parameters of the parts require a gradient, all others do not. A second call starts from the first state, so parts
    can be unfrozen step by step.

    Args:
        parts: names of sub-modules, compiled patterns of whole names, or predicates of (name, module); each selects
            modules and all that is in them. "cbam" is every CBAM, "head" the child named fc, classifier or head.
            Default: "cbam", "head".
        bn_eval: keep BatchNorm outside the parts in eval mode, also after ``model.train()``. Otherwise its running
            statistics follow the new data while its parameters are frozen. Conversion to SyncBatchNorm replaces the
            modules, so convert first.

    Raises:
        ValueError: a part that the model does not have, or modules frozen by a call for another module. The model is
            then unchanged.
    """
    kept = {m for part in parts or ("cbam", "head") for top in _part(model, part) for m in top.modules()}
    network = unwrapped(model)
    frozen = [] if BEFORE in vars(network) else [n for n, m in network.named_modules() if _is_frozen(m)]
    if frozen:
        frozen.sort(key=lambda name: not isinstance(network.get_submodule(name), FrozenStatistics))
        raise ValueError(
            f"freeze_except: {frozen[0] or 'it'} is already frozen by a call for a part of this "
            f"{type(network).__name__} or for a model that contains it; unfreeze that first"
        )
    trained = {id(p) for m in kept for p in m.parameters(recurse=False)}
    if BEFORE in vars(network):
        unfreeze(network)
    setattr(network, BEFORE, {n: p.requires_grad for n, p in network.named_parameters()})
    for module in list(network.modules()):
        if own := {n: p.requires_grad for n, p in module._parameters.items() if p is not None}:
            setattr(module, OWN, own)
        if bn_eval and isinstance(module, _NormBase) and module.track_running_stats and module not in kept:
            substitute(module, FrozenStatistics)
            module.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def unfreeze(model: nn.Module) -> None:
    """Undo freeze_except: restore requires_grad of the parameters, and set BatchNorm to the model's mode.

    This includes modules that were wrapped, moved or renamed since. A part that was taken out of the model needs its
    own call. Modules added since keep their state; a warning names parameters that stay frozen but were not frozen
    before freeze_except.

    Raises:
        ValueError: freeze_except was not called for this model, or a BatchNorm was parametrized since. The model is
            then unchanged.
    """
    network = unwrapped(model)
    if BEFORE not in vars(network) and not any(_is_frozen(m) for m in network.modules()):
        raise ValueError(f"unfreeze: freeze_except was not called for this {type(network).__name__}")
    frozen = {n: m for n, m in network.named_modules() if isinstance(m, FrozenStatistics)}
    if changed := [n for n, m in frozen.items() if type(m).__bases__[0] is not FrozenStatistics]:
        raise ValueError(
            f"unfreeze: the class of {changed[0]} changed after freeze_except, for instance by a parametrization; "
            "remove that first"
        )
    before = vars(network).get(BEFORE, {})
    left = []
    for prefix, module in network.named_modules():
        own = vars(module).get(OWN, {})
        for name, parameter in module._parameters.items():
            full = f"{prefix}.{name}" if prefix else name
            first = PARAMETRIZED.sub(r"\1", full)
            if parameter is None:
                continue
            if name in own:
                parameter.requires_grad_(own[name])
            elif before.get(first, False):  # replaced under the same name
                parameter.requires_grad_(True)
            elif first not in before and not parameter.requires_grad:
                left.append(full)
    for module in frozen.values():
        restore(module)
        module.train(network.training)
    for module in network.modules():
        for record in (BEFORE, OWN):
            vars(module).pop(record, None)
    if left:
        warnings.warn(
            f"unfreeze: {', '.join(left)} were added frozen after freeze_except and stay frozen; set requires_grad to "
            "train them",
            stacklevel=2,
        )


def _is_frozen(module: nn.Module) -> bool:
    return OWN in vars(module) or isinstance(module, FrozenStatistics)


class PartParameters(NamedTuple):
    """One row of the parameter table."""

    part: str
    parameters: int
    trainable: int


def parameter_table(model: nn.Module) -> tuple[list[PartParameters], str]:
    """The number of parameters of each part, and of those that require a gradient: as rows, and as text.

    The parts are the children of the model, all CBAMs together as "cbam", and the model's own parameters as "(own)".
    The last row is the total. A parameter shared by several parts counts in the first.
    """
    in_cbam = {id(p) for m in find_cbams(model).values() for p in m.parameters()}
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = "cbam" if id(parameter) in in_cbam else name.split(".")[0] if "." in name else "(own)"
        count = counts.setdefault(part, [0, 0])
        count[0] += parameter.numel()
        count[1] += parameter.numel() * parameter.requires_grad
    rows = [PartParameters(part, *count) for part, count in counts.items()]
    rows.append(PartParameters("total", sum(r.parameters for r in rows), sum(r.trainable for r in rows)))
    width = max(len(r.part) for r in rows)
    lines = [f"{'part':{width}}  {'parameters':>12}  {'trainable':>12}"]
    lines += [f"{r.part:{width}}  {r.parameters:12,}  {r.trainable:12,}" for r in rows]
    return rows, "\n".join(lines)


def _part(model: nn.Module, part: Part) -> list[nn.Module]:
    if part == "cbam":
        found = list(find_cbams(model).values())
        if not found:
            raise ValueError(f"freeze_except: {type(model).__name__} has no CBAM; name the parts to train")
        return found
    if part == "head":
        found = [m for n, m in unwrapped(model).named_children() if n in HEADS]
        if not found:
            raise ValueError(
                f"freeze_except: {type(model).__name__} has no child named {', '.join(HEADS)}; name its head"
            )
        return found
    return list(select(model, part, "freeze_except").values())
