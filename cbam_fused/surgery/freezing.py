"""Training only a part of a model, and a table of what is trained."""

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..keywords import names_keywords
from .selection import find_cbams, select
from .substitution import Substitute, restore, substitute

HEADS = ("fc", "classifier", "head")
BEFORE = "_requires_grad_before_freezing"

Part = str | re.Pattern | Callable[[str, nn.Module], bool]


class FrozenStatistics(Substitute):
    """A BatchNorm that stays in eval mode when its network is put into training mode."""

    def train(self, mode: bool = True):
        return super().train(False)


@names_keywords
def freeze_except(model: nn.Module, *parts: Part, bn_eval: bool = True) -> None:
    """Freeze everything but the named parts, in place, until :func:`unfreeze`.

    Frozen parameters do not require a gradient, those of the parts do. A second call starts from the first state,
    so parts can be thawed step by step.

    Args:
        parts: names of sub-modules, compiled patterns of whole names, or predicates of (name, module); each stands
            for the modules with all that is in them. "cbam" is every CBAM, "head" the child named fc, classifier or
            head. Default: "cbam", "head".
        bn_eval: keep BatchNorm outside the parts in eval mode, also after ``model.train()``. Otherwise its running
            statistics follow the new data although its parameters are frozen. A later conversion to SyncBatchNorm
            replaces the modules, so convert first.

    Raises:
        ValueError: a part that the model does not have, or BatchNorm that is frozen by a call for another module than
            this; the model is then unchanged.
    """
    kept = {m for part in parts or ("cbam", "head") for top in _part(model, part) for m in top.modules()}
    frozen = [] if hasattr(model, BEFORE) else [n for n, m in model.named_modules() if isinstance(m, FrozenStatistics)]
    if frozen:
        raise ValueError(
            f"freeze_except: {frozen[0]} is already frozen, by a call for a part of this {type(model).__name__} "
            "or for what it is a part of; unfreeze that first"
        )
    trained = {id(p) for m in kept for p in m.parameters(recurse=False)}
    if hasattr(model, BEFORE):
        unfreeze(model)
    setattr(model, BEFORE, {n: p.requires_grad for n, p in model.named_parameters()})
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    for module in list(model.modules()):
        if bn_eval and isinstance(module, _NormBase) and module.track_running_stats and module not in kept:
            substitute(module, FrozenStatistics)
            module.eval()


def unfreeze(model: nn.Module) -> None:
    """Undo freeze_except: parameters require a gradient where they did before, BatchNorm is in the model's mode again.

    Raises:
        ValueError: freeze_except was not called for this model, or a BatchNorm has got a parametrization since; the
            model is then unchanged.
    """
    if not hasattr(model, BEFORE):
        raise ValueError(f"unfreeze: freeze_except was not called for this {type(model).__name__}")
    frozen = {n: m for n, m in model.named_modules() if isinstance(m, FrozenStatistics)}
    if changed := [n for n, m in frozen.items() if type(m).__bases__[0] is not FrozenStatistics]:
        raise ValueError(
            f"unfreeze: {changed[0]} has got another class since freeze_except, such as that of a parametrization; "
            "remove that first"
        )
    before = getattr(model, BEFORE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(before.get(name, parameter.requires_grad))
    for module in frozen.values():
        restore(module)
        module.train(model.training)
    delattr(model, BEFORE)


class PartParameters(NamedTuple):
    """One row of the parameter table."""

    part: str
    parameters: int
    trainable: int


def parameter_table(model: nn.Module) -> tuple[list[PartParameters], str]:
    """How many parameters each part has and how many of them require a gradient: as rows, and as text to print.

    The parts are the children of the model, all CBAMs together as "cbam", and the model's own parameters as "(own)";
    the last row is the total. A parameter that several parts share counts in the first.
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
            raise ValueError(
                f"freeze_except: {type(model).__name__} has no CBAM; name the parts that are to be trained"
            )
        return found
    if part == "head":
        found = [m for n, m in model.named_children() if n in HEADS]
        if not found:
            raise ValueError(
                f"freeze_except: {type(model).__name__} has no child named {', '.join(HEADS)}; name its head"
            )
        return found
    return list(select(model, part, "freeze_except").values())
