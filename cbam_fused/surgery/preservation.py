"""Runs a model and then restores its state and the random generators."""

import collections
import functools
import random
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .generators import Undo, global_generators, later

HOOKS = (
    *("_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"),
    *("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
# Objects of these types are shared; their attributes are not state of a model.
SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device)
# The modules of the standard library whose objects may be state of a model, unlike threads and loggers.
HOLDERS = {"builtins", "collections", "functools", "random", "types"}


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Restore tensors, attributes, modes and generators of the model at the end of the block.

    This covers the attributes of modules, of containers and of other objects in them. Effects of a forward on files or
    global variables remain.
    """
    undo = [*global_generators(model), *_holdings(model, {})]
    try:
        yield
    finally:
        for step in undo:
            step()


def holdings(value: Any) -> list[object]:
    """Every object reachable from a value by attributes and containers, and the states of generators."""
    return [*_reached(value, {})]


def same_holdings(before: list[object], after: list[object]) -> bool:
    """Whether these are the same objects, with generators in the same states."""
    return len(before) == len(after) and all(
        a is b or (isinstance(a, str) and a == b) for a, b in zip(before, after, strict=True)
    )


def _reached(value: Any, seen: dict[int, object]) -> Iterator[object]:
    yield value
    if id(value) in seen or _is_shared(value):
        return
    seen[id(value)] = value
    if (state := _state_of(value)) is not None:
        yield repr(state)
    for item in _items(value):
        yield from _reached(item, seen)


def _is_shared(value: Any) -> bool:
    """Whether a value is not state of a model, such as a function, a thread or an internal object of PyTorch."""
    top, *_ = type(value).__module__.split(".")
    if top == "torch":
        return not isinstance(value, Tensor | nn.Module | torch.Generator)
    return isinstance(value, SHARED) or (top in sys.stdlib_module_names and top not in HOLDERS)


def _holdings(value: Any, seen: dict[int, object]) -> Iterator[Undo]:
    if id(value) in seen or _is_shared(value):
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield _tensor(value)
    elif (state := _state_of(value)) is not None:
        yield _generator(value, state)
    elif isinstance(value, dict | list | set | collections.deque):
        yield _container(value)
    if isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, Tensor):
        yield _container(value.__dict__)
    if isinstance(value, nn.Module):
        yield later(setattr, value, "__class__", type(value))
    for item in _items(value):
        yield from _holdings(item, seen)


def _items(value: Any) -> list[Any]:
    """The objects in a value, except a module's hooks, which belong to their owner."""
    own = getattr(value, "__dict__", None)
    items = [v for k, v in own.items() if k not in HOOKS] if isinstance(own, dict) else []
    if isinstance(value, dict):
        items += value.values()
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        items += value
    elif isinstance(value, types.MethodType):
        items.append(value.__self__)
    elif isinstance(value, functools.partial):
        items += [value.func, *value.args, *value.keywords.values()]
    return items


def _tensor(tensor: Tensor) -> Undo:
    if tensor.device.type == "meta":
        return lambda: None
    with torch.no_grad():
        copy = tensor.detach().clone()
    requires_grad = tensor.requires_grad

    def undo() -> None:
        with torch.no_grad():
            if tensor.shape != copy.shape:
                tensor.data = copy
            elif not torch.equal(tensor, copy):
                tensor.copy_(copy)
        if tensor.requires_grad != requires_grad and tensor.is_leaf:
            tensor.requires_grad_(requires_grad)

    return undo


def _state_of(value: Any) -> Any:
    """The state of a generator; None for other objects."""
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if type(value).__module__.startswith("numpy.random") and hasattr(value, "bit_generator"):
        return value.bit_generator.state
    if type(value).__module__.startswith("numpy.random") and hasattr(value, "get_state"):
        return value.get_state()
    return None


def _generator(value: Any, state: Any) -> Undo:
    if isinstance(value, torch.Generator):
        return later(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return later(value.setstate, state)
    if hasattr(value, "bit_generator"):
        return later(setattr, value.bit_generator, "state", state)
    return later(value.set_state, state)


def _container(value: Any) -> Undo:
    before = list(value.items()) if isinstance(value, dict) else list(value)

    def undo() -> None:
        now = list(value.items()) if isinstance(value, dict) else list(value)
        if len(now) == len(before) and all(_same(a, b) for a, b in zip(now, before, strict=True)):
            return
        value.clear()
        (value.update if isinstance(value, dict | set) else value.extend)(before)

    return undo


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) == 2:
        return a[0] is b[0] and a[1] is b[1]  # an item of a dictionary
    return a is b
