"""Modules that multiply two masks in themselves, x = ca(x) * x; x = sa(x) * x: one fused call instead."""

import inspect
import operator

import torch
from torch import fx, nn

from .modules import ChannelAttention, SpatialAttention, attend

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)

_MULTIPLICATIONS = (operator.mul, torch.mul, "mul")


def has_hooks(module: nn.Module) -> bool:
    return any(module.__dict__[name] for name in HOOKS)


def fuse_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Fuse the pairs of masks that the forward of this module applies in a row, as torch.fx finds them.

    The module keeps its children, their names and its class, of which it gets a subclass with another ``forward``.
    This is the traced one: what its Python code decides by attributes is decided for good. A forward that torch.fx
    cannot trace, that takes more than one argument or does not do the same in both modes is left as it is.

    Returns:
        The names of the pairs that were fused.
    """
    kinds = [type(child) for child in module.children()]
    if ChannelAttention not in kinds or SpatialAttention not in kinds or "forward" in module.__dict__:
        return []
    parameters = inspect.signature(module.forward).parameters.values()
    if [(p.kind, p.default) for p in parameters] != [
        (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)
    ]:
        return []
    graphs = _traces(module)
    if graphs is None or str(graphs[0]) != str(graphs[1]):
        return []
    graph = graphs[0]
    pairs = [pair for node in list(graph.nodes) if (pair := _fuse(module, graph, node))]
    if pairs:
        forward = type(fx.GraphModule(module, graph)).forward
        cls = type(module)
        module.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    return pairs


class _Children(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traces(module: nn.Module) -> list[fx.Graph] | None:
    """The graphs of forward in eval and in training mode; None if it cannot be traced."""
    attributes, training, graphs = {*module.__dict__}, module.training, []
    try:
        for mode in (False, True):
            module.training = mode
            graphs.append(_Children().trace(module))
    except Exception:  # whatever Python code does with a proxy
        graphs = None
    module.training = training
    constants = {*module.__dict__} - attributes  # the tracer puts them there
    for name in constants:
        delattr(module, name)
    return None if constants else graphs


def _fuse(module: nn.Module, graph: fx.Graph, channel: fx.Node) -> tuple[str, str] | None:
    """If this node is the mask of a pair, put one call in the place of the pair; the names of its two modules."""
    refined = _multiplied(module, channel, ChannelAttention)
    if refined is None or len(refined.users) != 2:
        return None
    for spatial in refined.users:
        result = _multiplied(module, spatial, SpatialAttention)
        if result is not None and {*refined.users} == {spatial, result}:
            with graph.inserting_before(result):
                masks = [graph.get_attr(node.target) for node in (channel, spatial)]
                call = graph.call_function(attend, (*masks, channel.args[0]))
            result.replace_all_uses_with(call)
            for node in (result, spatial, refined, channel):
                graph.erase_node(node)
            return channel.target, spatial.target
    return None


def _multiplied(module: nn.Module, mask: fx.Node, kind: type) -> fx.Node | None:
    """The product of a mask and what it is the mask of, if that is all it is used for."""
    if mask.op != "call_module" or len(mask.args) != 1 or mask.kwargs or len(mask.users) != 1:
        return None
    gate = module.get_submodule(mask.target)
    if type(gate) is not kind or gate._unserved or has_hooks(gate):
        return None
    (product,) = mask.users
    if product.op not in ("call_function", "call_method") or product.target not in _MULTIPLICATIONS or product.kwargs:
        return None
    return product if len(product.args) == 2 and {*product.args} == {mask, mask.args[0]} else None
