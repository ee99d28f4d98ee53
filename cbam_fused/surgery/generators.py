"""The global random generators of Python, NumPy and PyTorch: comparing and restoring their states."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Undo = Callable[[], object]


def global_generators(model: nn.Module | None = None) -> list[Undo]:
    """Functions that restore the present states of Python's, NumPy's and PyTorch's generators."""
    undo: list[Undo] = [later(random.setstate, random.getstate()), later(torch.set_rng_state, torch.get_rng_state())]
    if "numpy" in sys.modules:
        import numpy

        undo.append(later(numpy.random.set_state, numpy.random.get_state()))
    for device in _devices(model):
        of_device = torch.get_device_module(device.type)
        undo.append(later(of_device.set_rng_state, of_device.get_rng_state(device), device))
    return undo


def generator_states(model: nn.Module | None = None) -> list[object]:
    """The states of the global generators, for comparison."""
    states: list[object] = [random.getstate(), torch.get_rng_state().tolist()]
    if "numpy" in sys.modules:
        import numpy

        state: Any = numpy.random.get_state(legacy=False)
        states.append((state["state"]["key"].tolist(), state["state"]["pos"], state["gauss"]))
    for device in _devices(model):
        states.append(torch.get_device_module(device.type).get_rng_state(device).tolist())
    return states


def _devices(model: nn.Module | None) -> set[torch.device]:
    """The devices of a model that have generators of their own, other than the CPU."""
    tensors = [] if model is None else [*model.parameters(), *model.buffers()]
    return {t.device for t in tensors if t.device.type not in ("cpu", "meta")}


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the generators of the CPU at the end of the block."""
    undo = global_generators()
    try:
        yield
    finally:
        for step in undo:
            step()


def later(function: Callable, *args: Any) -> Undo:
    return lambda: function(*args)
