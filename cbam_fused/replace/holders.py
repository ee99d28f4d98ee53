"""Finds references to modules and parameters from outside the module tree; they would keep the old module."""

import collections
import functools
import types
from typing import Any

from torch import nn

_CONTAINERS = (list, tuple, set, frozenset, collections.deque)
_ATOMS = (str, bytes, int, float, complex, bool, type(None), types.ModuleType, type)
_OF_THE_TREE = ("_modules", "_parameters", "_buffers")


def held_elsewhere(model: nn.Module) -> dict[int, str]:
    """For the id of each module and parameter that an attribute, a closure or a hook holds: the holder."""
    tree = {id(m): m for m in model.modules()} | {id(p): p for p in model.parameters()}
    held: dict[int, str] = {}
    for name, module in model.named_modules():
        whose = f"of {name}" if name else "of the model"
        found = [(f"the attribute {key} {whose}", v) for key, v in vars(module).items() if key not in _OF_THE_TREE]
        for cls in type(module).__mro__:
            if not cls.__module__.startswith("torch.") and cls is not object:
                found += [(f"the class {cls.__name__}", value) for value in vars(cls).values()]
        seen: set[int] = set()
        while found:
            holder, value = found.pop()
            if isinstance(value, _ATOMS) or id(value) in seen:
                continue
            seen.add(id(value))
            if id(value) in tree:
                held.setdefault(id(value), holder)
                continue
            found += [(holder, item) for item in _contents(value)]
    return held


def _contents(value: Any) -> list[Any]:
    """The objects in an object: items, attributes, and for functions closures, defaults and globals in their code."""
    if isinstance(value, staticmethod | classmethod | types.MethodType):
        return [value.__func__, getattr(value, "__self__", None)]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.FunctionType):
        if (value.__module__ or "").startswith("torch."):
            names: tuple[str, ...] = ()
        else:
            names = value.__code__.co_names
        of_globals = [value.__globals__[n] for n in names if n in value.__globals__]
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        modules = [v for v in of_globals if isinstance(v, nn.Module | list | tuple | dict)]
        return [*cells, *modules, value.__defaults__, value.__kwdefaults__]
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, _CONTAINERS):
        return [*value]
    return [*getattr(value, "__dict__", {}).values()]


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None
