"""Fuses the two masks of a caller, x = ca(x) * x; x = sa(x) * x, into one call."""

import collections
import copy
import functools
import operator
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import inplace_methods

from ..hooks import has_own_call, is_own
from ..modules import CBAM, ChannelAttention, SpatialAttention, attend
from ..routing import without_demand
from ..surgery.generators import generator_states, kept_generators
from .inspection import MISSING, Reads, Unseen, inspect_forward
from .match import random_copy, takes_one_argument

_MULTIPLICATIONS = (operator.mul, torch.mul, "mul")
_FUSED = "cbam_fused"  # marks the forwards created here
_COLLECTIONS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_SHAPES = ((2, 32, 32, 1.0), (1, 9, 14, 1e2), (3, 16, 8, 1e-2), (1, 224, 224, 1.0))


def fuse_pairs(module: nn.Module) -> tuple[list[tuple[str, str]], str]:
    """Fuse the pairs of masks that the forward of this module applies in a row, as found by torch.fx.

    The module keeps its children and their names. Its class becomes a subclass whose ``forward`` is the traced one.
    Each call compares the attributes that the old forward reads with their values at tracing, and runs the old forward
    if they have changed. A forward is left alone if its code may have an effect that torch.fx does not see
    (inspection.py), if torch.fx cannot trace it, if it takes more than one argument or differs between the modes, if a
    random generator advances, or if a copy of the module does not run on random maps or returns another result.

    Returns:
        The names of the fused pairs; and if there are none despite both masks, the reason.
    """
    kinds = [type(child) for child in module.children()]
    if (
        isinstance(module, CBAM)
        or hasattr(type(module).forward, _FUSED)
        or ChannelAttention not in kinds
        or SpatialAttention not in kinds
    ):
        return [], ""
    if has_own_call(module):
        return [], "its forward is not its class's"
    if not takes_one_argument(module):
        return [], "its forward has more than one argument"
    cls = type(module)
    if type(cls) is not type or any("__init_subclass__" in vars(base) for base in cls.__mro__ if base is not object):
        return [], "its class runs code when it is subclassed"
    try:
        reads = inspect_forward(module)
        for name, value in reads.constants.items():
            if isinstance(value, list | tuple) and not _is_fixed(value):
                raise Unseen(f"reads its attribute {name}, a {type(value).__name__}")
        for name in reads.children:
            if isinstance(getattr(module, name), _COLLECTIONS):
                raise Unseen(f"iterates over {name}, a {type(getattr(module, name)).__name__}")
    except Unseen as unseen:
        return [], f"its forward {unseen}"
    graphs = _traces(module)
    if graphs is None:
        return [], "torch.fx cannot trace its forward, or misses an effect of it"
    if str(graphs[0]) != str(graphs[1]):
        return [], "its forward differs in training mode"
    graph = graphs[0]
    if nested := [str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr") and "." in str(n.target)]:
        return [], f"its forward uses {nested[0]}, which is in another module"
    pairs = [pair for node in list(graph.nodes) if (pair := _fuse(module, graph, node))]
    if not pairs:
        return [], "it does not multiply x with two masks in a row"
    traced = type(fx.GraphModule(module, graph)).forward
    forward = _guarded(cls.forward, traced, reads)
    fused = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    if reason := _difference(module, fused):
        return [], reason
    module.__class__ = fused
    return pairs, ""


def _is_fixed(value: Any) -> bool:
    return all(_is_fixed(item) for item in value) if isinstance(value, tuple) else not isinstance(value, list)


def _guarded(original: Any, traced: Any, reads: Reads) -> Any:
    """The traced forward; the original one if attributes that it reads have changed."""
    constants = {name: value for name, value in reads.constants.items() if value is not MISSING}
    missing = [name for name, value in reads.constants.items() if value is MISSING]
    present = [name for name, there in reads.children.items() if there]
    absent = [name for name, there in reads.children.items() if not there]

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        changed = (
            any(_differ(getattr(self, name, MISSING), value) for name, value in constants.items())
            or any(hasattr(self, name) for name in missing)
            or any(getattr(self, name, None) is None for name in present)
            or any(getattr(self, name, None) is not None for name in absent)
        )
        return original(self, *args, **kwargs) if changed else traced(self, *args, **kwargs)

    setattr(forward, _FUSED, True)
    return forward


def _differ(found: Any, value: Any) -> bool:
    return found is not value and (type(found) is not type(value) or bool(found != value))


def augmented(name: str, a: object, b: object) -> object:
    """In-place operators such as a += b, for the traced code."""
    return getattr(operator, name)(a, b)


class _Proxy(fx.Proxy):
    """A proxy that keeps in-place arithmetic in place; torch.fx would create new tensors."""


for _name in inplace_methods:
    setattr(
        _Proxy,
        f"__{_name}__",
        lambda self, other, name=_name: self.tracer.create_proxy("call_function", augmented, (name, self, other), {}),
    )


class _Children(fx.Tracer):
    proxy_buffer_attributes = True  # otherwise changes of a buffer would happen once, while tracing

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _traces(module: nn.Module) -> list[fx.Graph] | None:
    """The graphs of a copy's forward in eval and in training mode; None if it cannot be traced or has other effects.

    A graph has neither the ``with`` around a call (no_grad, autocast, checkpoint) nor changes of attributes.
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
        with ThreadPoolExecutor(1) as thread:  # this thread's profile function may belong to a profiler
            return thread.submit(trace).result()
    except Exception:  # Python code may raise anything for a proxy
        return None


def _attributes(value: Any, seen: dict[int, object]) -> Iterator[object]:
    """Every object reachable from an object by attributes and containers, and the versions of tensors."""
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
    """If this node and the next three are a pair, replace them by one call; the names of its two modules."""
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
    """The next node, if it multiplies a mask with the mask's input, and nothing else uses the mask."""
    if mask.op != "call_module" or len(mask.args) != 1 or mask.kwargs or [*mask.users] != [mask.next]:
        return None
    gate: Any = module.get_submodule(str(mask.target))
    if not is_own(gate, kind, getattr(gate, "switches", None)):
        return None
    product = mask.next
    if product.op not in ("call_function", "call_method") or product.target not in _MULTIPLICATIONS or product.kwargs:
        return None
    return product if len(product.args) == 2 and {*product.args} == {mask, mask.args[0]} else None


def _difference(module: nn.Module, fused: type) -> str:
    """Why the fused class differs from the module on copies and random maps; empty if it does not."""
    compared = False
    with kept_generators(), torch.device("cpu"), torch.enable_grad(), without_demand():
        try:
            original = random_copy(module, torch.Generator().manual_seed(0))
        except Exception:  # a module that cannot be copied cannot be compared
            return "it cannot be copied"
        for x in _inputs(module):
            if compared and x.shape[-1] > 100:
                continue
            before, after = copy.deepcopy(original), copy.deepcopy(original)
            after.__class__ = fused
            states = generator_states()
            try:
                expected = _run(before, x)
            except Exception:  # not an input of this module
                continue
            if generator_states() != states:
                return "it draws random numbers"
            try:
                found = [*_run(after, x), *after.buffers()]
            except Exception as error:
                return f"fused it fails: {type(error).__name__}: {error}"
            expected += before.buffers()
            if not all(_close(a, b) for a, b in zip(found, expected, strict=True)):
                return "fused it returns another result"
            if _dtype_under_autocast(before, x) != _dtype_under_autocast(after, x):
                return "fused it returns another dtype under autocast"
            compared = True
    return "" if compared else "it does not run on a random map"


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-9 * float(b.detach().abs().max()) if b.numel() else 0, equal_nan=True)


def _inputs(module: nn.Module) -> Iterator[Tensor]:
    """Maps of several sizes, batch sizes and scales, the largest last."""
    channels = [*dict.fromkeys(layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d))]
    for N, H, W, scale in _SHAPES:
        for C in channels:
            yield scale * torch.randn(N, C, H, W, dtype=torch.float64)


def _run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, input gradient, and parameter gradients as one, in eval and in training mode."""
    found = []
    for training in (False, True):
        x = x.detach().requires_grad_()
        y = module.train(training)(x)
        dx, *grads = torch.autograd.grad(y.square().sum(), (x, *module.parameters()), materialize_grads=True)
        found += [y, dx, torch.cat([g.flatten() for g in grads])]
    return found


def _dtype_under_autocast(module: nn.Module, x: Tensor) -> torch.dtype | None:
    """The dtype of the output; None if the module does not run under autocast."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            return module.float().eval()(x.float()).dtype
    except Exception:  # the module may not support float32 and half types
        return None
