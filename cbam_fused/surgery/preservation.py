"""Running a model without a trace: what it holds, and the random generators, are afterwards as they were."""

import collections
import functools
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = (
    *("_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"),
    *("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
# What is shared by everything; attributes of objects of these types are not those of a model.
SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device)
# Of the standard library, whose threads and loggers are nobody's state, these alone are looked into.
HOLDERS = {"builtins", "collections", "functools", "random", "types"}
Undo = Callable[[], object]


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Within it the model may be run; afterwards tensors, attributes, modes and generators are what they were.

    It reaches the attributes of modules, of containers and of other objects in them. What a forward does elsewhere, to
    a file or a global variable, it cannot take back.
    """
    undo = [*global_generators(model), *_holdings(model, {})]
    try:
        yield
    finally:
        for step in undo:
            step()


def global_generators(model: nn.Module) -> list[Undo]:
    """What sets Python's, NumPy's and PyTorch's generators back to their present states."""
    undo: list[Undo] = [_later(random.setstate, random.getstate()), _later(torch.set_rng_state, torch.get_rng_state())]
    if "numpy" in sys.modules:
        import numpy

        undo.append(_later(numpy.random.set_state, numpy.random.get_state()))
    for device in {t.device for t in (*model.parameters(), *model.buffers())}:
        if device.type not in ("cpu", "meta"):
            of_device = torch.get_device_module(device.type)
            undo.append(_later(of_device.set_rng_state, of_device.get_rng_state(device), device))
    return undo


def generator_states(model: nn.Module) -> list[object]:
    """The states of the global generators, to be compared."""
    states: list[object] = [random.getstate(), torch.get_rng_state().tolist()]
    if "numpy" in sys.modules:
        import numpy

        state: Any = numpy.random.get_state(legacy=False)
        states.append((state["state"]["key"].tolist(), state["state"]["pos"], state["gauss"]))
    for device in {t.device for t in model.parameters()}:
        if device.type not in ("cpu", "meta"):
            states.append(torch.get_device_module(device.type).get_rng_state(device).tolist())
    return states


def holdings(value: Any) -> list[object]:
    """Everything that is reached from a value by attributes and containers; of generators their states as well."""
    return [*_reached(value, {})]


def same_holdings(before: list[object], after: list[object]) -> bool:
    """Whether these are the same objects, and generators in the same states."""
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
    """Whether a value is no state of a model, such as a function, a thread or what PyTorch itself keeps."""
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
        yield _later(setattr, value, "__class__", type(value))
    for item in _items(value):
        yield from _holdings(item, seen)


def _items(value: Any) -> list[Any]:
    """What a value holds; hooks of a module belong to their owner."""
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
    """Of a generator, its state; None of anything else."""
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
        return _later(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return _later(value.setstate, state)
    if hasattr(value, "bit_generator"):
        return _later(setattr, value.bit_generator, "state", state)
    return _later(value.set_state, state)


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


def _later(function: Callable, *args: Any) -> Undo:
    return lambda: function(*args)
