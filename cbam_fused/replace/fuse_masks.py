"""Modules that multiply two masks in themselves, x = ca(x) * x; x = sa(x) * x: one fused call instead."""

import collections
import copy
import operator
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods

from ..functional import without_demand
from ..hooks import has_hooks
from ..modules import ChannelAttention, SpatialAttention, attend
from .match import random_copy, takes_one_argument

_MULTIPLICATIONS = (operator.mul, torch.mul, "mul")
_SIZES = (32, 224)


def fuse_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Fuse the pairs of masks that the forward of this module applies in a row, as torch.fx finds them.

    The module keeps its children, their names and its class, of which it gets a subclass with another ``forward``.
    This is the traced one: what its Python code decides by attributes is decided for good. A forward is left as it is
    if torch.fx cannot trace it, if it takes more than one argument, does not do the same in both modes, has a ``with``
    or writes to attributes, which torch.fx does not see, or if a copy of the module does not run on a random map or
    does not give the same there.

    Returns:
        The names of the pairs that were fused.
    """
    kinds = [type(child) for child in module.children()]
    if ChannelAttention not in kinds or SpatialAttention not in kinds or "forward" in module.__dict__:
        return []
    if not takes_one_argument(module):
        return []
    graphs = _traces(module)
    if graphs is None or str(graphs[0]) != str(graphs[1]):
        return []
    graph = graphs[0]
    pairs = [pair for node in list(graph.nodes) if (pair := _fuse(module, graph, node))]
    if not pairs:
        return []
    cls = type(module)
    forward = type(fx.GraphModule(module, graph)).forward
    fused = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    if not _same(module, fused):
        return []
    module.__class__ = fused
    return pairs


def augmented(name: str, a: object, b: object) -> object:
    """a += b and its like, for the traced code."""
    return getattr(operator, name)(a, b)


class _Proxy(fx.Proxy):
    """A proxy that keeps in-place arithmetic in place, of which torch.fx makes new tensors."""


for _name in inplace_methods:
    setattr(
        _Proxy,
        f"__{_name}__",
        lambda self, other, name=_name: self.tracer.create_proxy("call_function", augmented, (name, self, other), {}),
    )


class _Children(fx.Tracer):
    proxy_buffer_attributes = True  # else what happens to a buffer happens while tracing, and never again

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _traces(module: nn.Module) -> list[fx.Graph] | None:
    """The graphs of a copy's forward in eval and in training mode; None if it cannot be traced, or does more.

    A graph lacks the ``with`` that a call was in (no_grad, autocast, checkpoint), and what forward does to attributes.
    """
    entered: list[str] = []

    def watch(frame: types.FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_name == "__enter__" and frame.f_back is not None:
            entered.append(frame.f_back.f_globals.get("__name__", ""))

    def trace() -> list[fx.Graph] | None:
        copied = copy.deepcopy(module)
        before = [*_attributes(copied, {})]
        graphs = []
        sys.setprofile(watch)
        for mode in (False, True):
            copied.training = mode
            graphs.append(_Children().trace(copied))
        sys.setprofile(None)
        copied.training = module.training
        after = [*_attributes(copied, {})]
        same = len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))
        return graphs if same and all(name.startswith(("torch.fx", "torch.overrides")) for name in entered) else None

    try:
        with ThreadPoolExecutor(1) as thread:  # the function that watches this thread may be a profiler's
            return thread.submit(trace).result()
    except Exception:  # whatever Python code does with a proxy
        return None


def _attributes(value: Any, seen: dict[int, object]) -> Iterator[object]:
    """All that can be reached from an object by attributes and containers, and of tensors how often they changed."""
    yield value
    if id(value) in seen or isinstance(value, type | types.ModuleType | types.FunctionType):
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value._version
    items = [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, dict):
        items += [*value, *value.values()]
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        items += value
    for item in items:
        yield from _attributes(item, seen)


def _fuse(module: nn.Module, graph: fx.Graph, channel: fx.Node) -> tuple[str, str] | None:
    """If this node and the next three are a pair, put one call in their place; the names of its two modules."""
    refined = _product(module, channel, ChannelAttention)
    if refined is None:
        return None
    spatial = refined.next
    result = _product(module, spatial, SpatialAttention)
    if result is None or spatial.args[0] is not refined or {*refined.users} != {spatial, result}:
        return None
    names = str(channel.target), str(spatial.target)
    gates: list[Any] = [module.get_submodule(name) for name in names]
    if gates[0].switches.ties != gates[1].switches.ties:
        return None
    with graph.inserting_before(channel):
        masks = [graph.get_attr(name) for name in names]
        call = graph.call_function(attend, (*masks, channel.args[0]))
    result.replace_all_uses_with(call)
    for node in (result, spatial, refined, channel):
        graph.erase_node(node)
    return names


def _product(module: nn.Module, mask: fx.Node, kind: type[nn.Module]) -> fx.Node | None:
    """The next node, if it multiplies a mask with what it is the mask of, and nothing else uses the mask."""
    if mask.op != "call_module" or len(mask.args) != 1 or mask.kwargs or [*mask.users] != [mask.next]:
        return None
    gate: Any = module.get_submodule(str(mask.target))
    if type(gate) is not kind or gate._unserved or has_hooks(gate):
        return None
    product = mask.next
    if product.op not in ("call_function", "call_method") or product.target not in _MULTIPLICATIONS or product.kwargs:
        return None
    return product if len(product.args) == 2 and {*product.args} == {mask, mask.args[0]} else None


def _same(module: nn.Module, fused: type) -> bool:
    """Whether a copy of the module runs on a random map, and gives the same as one of the fused class."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad(), without_demand():
        try:
            before = random_copy(module, torch.Generator().manual_seed(0))
            after = copy.deepcopy(before)
        except Exception:  # what cannot be copied cannot be compared
            return False
        after.__class__ = fused
        for x in _inputs(module):
            try:
                expected = _run(before, x)
            except Exception:  # not an input of this module
                continue
            scales = [t.abs().max().item() for t in expected]
            found = zip(_run(after, x), expected, scales, strict=True)
            same = all(torch.allclose(a, b, rtol=0, atol=1e-9 * scale) for a, b, scale in found)
            return same and _dtype_under_autocast(before, x) == _dtype_under_autocast(after, x)
    return False


def _inputs(module: nn.Module) -> Iterator[Tensor]:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    for size in _SIZES:
        for channels in dict.fromkeys(layer.in_channels for layer in layers):
            yield torch.randn(2, channels, size, size, dtype=torch.float64)


def _run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, input gradient, and parameter gradients as one, in eval and in training mode."""
    found = []
    for training in (False, True):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs', too
        x = x.detach().requires_grad_()
        y = module.train(training)(x)
        dx, *grads = torch.autograd.grad(y.square().sum(), (x, *module.parameters()), materialize_grads=True)
        found += [y, dx, torch.cat([g.flatten() for g in grads])]
    return found


def _dtype_under_autocast(module: nn.Module, x: Tensor) -> torch.dtype | None:
    """The output's; None if the module does not run there."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            return module.float().eval()(x.float()).dtype
    except Exception:  # whatever the module does with float32 and halves
        return None
