"""Which sub-modules of a model are meant: by name, regular expression or predicate; which of them are CBAMs."""

import difflib
import re
from collections.abc import Callable, Iterable

from torch import nn

from .. import reference

CHILD = "cbam"  # the name under which an inserted module is registered
HANDLES = "_cbam_handles"  # on the module that it was put into: the hooks that belong to it, perhaps none

WRAPPERS = ("OptimizedModule", "DataParallel", "DistributedDataParallel")

Choice = str | Iterable[str] | re.Pattern | Callable[[str, nn.Module], bool]


def select(model: nn.Module, choice: Choice, argument: str) -> dict[str, nn.Module]:
    """The sub-modules that are meant, by their full names; the model itself is none of them.

    Args:
        choice: a name or names as in ``model.named_modules()``; a compiled pattern that must match the whole name;
            or a predicate of (name, module).
        argument: what error messages call the choice.

    Raises:
        ValueError: a name that does not exist (the nearest ones are given); a choice that nothing fits.
        TypeError: a choice of another type, or a name that is no text.
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
    """The part of an error message that gives the known names most like an unknown one."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3) or known[:3]
    return f"; the nearest names are {', '.join(near)}" if near else ""


def find_cbams(model: nn.Module) -> dict[str, nn.Module]:
    """Every CBAM of the model by its full name: what insert_cbam put there, and the CBAM modules it was built with.

    One that was wrapped after its insertion, as torch.compile does, has the name of its wrapper.
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
    """The one CBAM in a wrapper; the module itself if it is none."""
    if isinstance(module, reference.CBAM) or hasattr(type(module), "gates"):
        return module
    found = [m for m in module.modules() if isinstance(m, reference.CBAM) or hasattr(type(m), "gates")]
    return found[0] if len(found) == 1 else module


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in torch.compile's and DataParallel's wrappers."""
    while type(model).__name__ in WRAPPERS:
        (model,) = model.children()
    return model
