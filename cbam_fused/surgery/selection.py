"""Selects sub-modules of a model by name, regular expression or predicate; finds its CBAMs."""

import difflib
import re
from collections.abc import Callable, Iterable

from torch import nn

from .. import reference

CHILD = "cbam"  # the name under which an inserted module is registered
HANDLES = "_cbam_handles"  # on its parent: the handles of its hooks, possibly none

WRAPPERS = ("OptimizedModule", "DataParallel", "DistributedDataParallel")

Choice = str | Iterable[str] | re.Pattern | Callable[[str, nn.Module], bool]


def select(model: nn.Module, choice: Choice, argument: str) -> dict[str, nn.Module]:
    """The selected sub-modules by their full names, without the model itself.

    Args:
        choice: a name or names as in ``model.named_modules()``; a compiled pattern that must match the whole name;
            or a predicate of (name, module).
        argument: name of the argument in error messages.

    Raises:
        ValueError: an unknown name (with the nearest ones); a choice that selects nothing.
        TypeError: a choice of another type, or a name that is not a string.
    """
    known = {n: m for n, m in model.named_modules() if n}
    if isinstance(choice, re.Pattern):
        found = {n: m for n, m in known.items() if choice.fullmatch(n)}
    elif callable(choice):
        found = {n: m for n, m in known.items() if choice(n, m)}
    elif isinstance(choice, Iterable):
        names = [choice] if isinstance(choice, str) else list(choice)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"{argument} must be names of sub-modules, got {name!r} in {names}")
            if name not in known:
                raise ValueError(f"{argument}: the model has no sub-module {name!r}{nearest(name, known)}")
        found = {n: known[n] for n in names}
        if len(found) < len(names):
            raise ValueError(f"{argument} must name sub-modules, each only once, got {names}")
    else:
        raise TypeError(f"{argument} must be names, a compiled pattern or a predicate, got {type(choice).__name__}")
    if not found:
        raise ValueError(f"{argument} must pick at least one sub-module by its whole name, got {choice!r}")
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """The part of an error message with the known names nearest to an unknown one."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3) or known[:3]
    return f"; the nearest names are {', '.join(near)}" if near else ""


def find_cbams(model: nn.Module) -> dict[str, nn.Module]:
    """Every CBAM of the model by its full name: those of insert_cbam and those that the model was built with.

    A CBAM that was wrapped after its insertion, for instance by torch.compile, has the name of its wrapper.
    """
    inserted = {}
    for holder in model.modules():
        child = holder._modules.get(CHILD) if HANDLES in vars(holder) else None
        if child is not None:
            inserted[child] = _within(child)
    wrapped = {m for child, m in inserted.items() if child is not m}
    return {
        n: inserted.get(m, m)
        for n, m in model.named_modules()
        if m in inserted or (isinstance(m, reference.CBAM) and m not in wrapped)
    }


def _within(module: nn.Module) -> nn.Module:
    """The single CBAM in a wrapper; the module itself if it is not a wrapper."""
    if isinstance(module, reference.CBAM) or hasattr(type(module), "gates"):
        return module
    found = [m for m in module.modules() if isinstance(m, reference.CBAM) or hasattr(type(m), "gates")]
    return found[0] if len(found) == 1 else module


def unwrapped(model: nn.Module) -> nn.Module:
    """The network without the wrappers of torch.compile and DataParallel."""
    while type(model).__name__ in WRAPPERS:
        (model,) = model.children()
    return model
