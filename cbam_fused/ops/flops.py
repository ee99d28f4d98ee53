"""Formulas for torch.utils.flop_counter: the operators count as the plain module does.

Only convolutions count: 2 operations for each weight at each position. Pools, gates, products and BatchNorm count
nothing. In the backward a convolution counts once for its weight and once for its input, if these need a gradient.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from .._ops import ops
from ..tensors import terms
from . import registry

COUNTER = "torch.utils.flop_counter"


def _layer(w: Tensor | None, places: int) -> int:
    if w is None:
        return 0
    expanded = w.dim() == 4 and w.shape[1] == 2 and w.stride(1) == 0  # one weight over the mean of the two maps
    return 2 * places * w.numel() // (2 if expanded else 1)


def _gates_forward(x: Tensor, *args: Any, **_: Any) -> int:
    w1, w2, ws, *_rest, switches = args
    N, _C, H, W = x.shape
    vectors = N * terms(switches)  # inputs of the MLP
    return _layer(w1, vectors) + _layer(w2, vectors) + _layer(ws, N * H * W)


def _backward(dy: Tensor, x: Tensor, y: Any, saved: Tensor, index: Tensor, *args: Any, **_: Any) -> int:
    def learn(*tensors: Tensor | None) -> bool:
        return any(t is not None and t.requires_grad for t in tensors)

    w1, w2, ws, b1, b2, _bs, switches = args
    N, _C, H, W = x.shape
    first = learn(x) + learn(w1)
    second = learn(x, w1, b1) + learn(w2)
    spatial = learn(x, w1, b1, w2, b2) + learn(ws)
    vectors = N * terms(switches)
    return first * _layer(w1, vectors) + second * _layer(w2, vectors) + spatial * _layer(ws, N * H * W)


def _backward_from_gate_grads(dy: Any, s: Any, dg: Any, dlogits: Any, x: Tensor, *args: Any, **_: Any) -> int:
    saved, index, *rest = args
    return _backward(dy, x, None, saved, index, *rest)


# apply and products are pointwise.
FORMULAS: dict[str, Callable[..., int]] = {
    "forward": _gates_forward,
    "gates_forward": _gates_forward,
    "backward": _backward,
    "backward_from_gate_grads": _backward_from_gate_grads,
}


def _register(counter: ModuleType) -> None:
    for prefix in ("triton_", *({""} if registry.operators.keys() - {"triton"} else ())):
        for name, formula in FORMULAS.items():
            counter.register_flop_formula(getattr(ops, prefix + name), get_raw=True)(formula)


class _Finder(importlib.abc.MetaPathFinder):
    """Registers the formulas when the counter is imported; importing it here would import Triton."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            loader.exec_module = execute_and_register
        return spec


if COUNTER in sys.modules:
    _register(sys.modules[COUNTER])
else:
    sys.meta_path.insert(0, _Finder())
