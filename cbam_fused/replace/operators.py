"""The operators of a foreign module: its code is inspected, and torch.fx lists them.

Numbers prove nothing about cases that they did not reach: a clamp at 1e9, a branch for maps of 100 pixels. So a module
counts as a CBAM only if its forward is a straight line of the operators of CBAMs.
"""

import copy
import re
from typing import Any

import torch
from torch import fx, nn

from .. import reference
from ..hooks import has_own_call
from .inspection import Unseen, inspect_forward

# No comparison, no clamp, nothing random, no dtype: each is either smooth, a maximum or a rearrangement.
_FUNCTIONS = frozenset(
    (
        *(
            "add",
            "cat",
            "concat",
            "div",
            "exp",
            "iadd",
            "imul",
            "itruediv",
            "isub",
            "log",
            "logsumexp",
            "mul",
            "multiply",
        ),
        *(
            "neg",
            "norm",
            "pow",
            "reciprocal",
            "sqrt",
            "square",
            "stack",
            "sub",
            "sum",
            "tanh",
            "truediv",
            "vector_norm",
        ),
        *("amax", "max", "mean", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "lp_pool2d", "max_pool2d"),
        *("gelu", "hardsigmoid", "leaky_relu", "relu", "sigmoid", "silu", "softplus"),
        *("batch_norm", "conv2d", "linear", "matmul", "bmm"),
        *(
            "expand",
            "expand_as",
            "flatten",
            "getitem",
            "permute",
            "reshape",
            "size",
            "squeeze",
            "transpose",
            "unsqueeze",
        ),
        *(
            "broadcast_to",
            "chunk",
            "clone",
            "contiguous",
            "dim",
            "split",
            "t",
            "unflatten",
            "view",
            "view_as",
            "repeat",
        ),
        *("_assert", "boolean_dispatch", "floordiv"),
    )
)
_LAYERS = (
    *(nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.LPPool2d),
    *(nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus),
)
_SHAPES = ("shape", "ndim")
_OURS = (reference.CBAM, reference.ChannelAttention, reference.SpatialAttention)


def what_the_code_hides(module: nn.Module) -> str:
    """Why the code of a module and its parts may have an undetected effect; empty if not. Runs no code of theirs."""
    if type(module) in _OURS:
        ours: Any = module
        called = ours.calls_masks() if isinstance(module, reference.CBAM) else ours.calls_layers()
        return "its masks or layers are called" if called or has_own_call(module) else ""
    for name, part in module.named_modules():
        whose = f"the forward of its {name}" if name else "its forward"
        if _is_of_torch(part) and not has_own_call(part):
            continue
        if type(part).forward is nn.Module.forward:  # a container
            continue
        try:
            reads = inspect_forward(part, by_name=True)
        except Unseen as unseen:
            return f"{whose} {unseen}"
        numbers = [n for n, value in reads.constants.items() if isinstance(value, float)]
        if numbers and not isinstance(part, nn.BatchNorm2d):
            return f"{whose} reads the number {numbers[0]}, which may change"
    return ""


def foreign_operator(module: nn.Module) -> str:
    """Why a module may compute something else on other inputs; empty if it has only operators of CBAMs."""
    if type(module) in _OURS:
        return ""
    try:
        copied = copy.deepcopy(module)
        graphs = [_Operators().trace(copied.train(mode)) for mode in (False, True)]
    except Exception as error:  # Python code may raise anything for a proxy
        text = re.sub(r"\s+", " ", str(error))[:120]
        return f"torch.fx cannot trace its forward: {type(error).__name__}: {text}"
    for node in (node for graph in graphs for node in graph.nodes):
        if name := _foreign(node, module):
            return f"its forward uses {name}, which no CBAM uses"
    return ""


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _foreign(node: fx.Node, module: nn.Module) -> str:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return "" if type(layer) in _LAYERS else type(layer).__name__
    if node.op in ("call_function", "call_method"):
        name = node.target if isinstance(node.target, str) else node.target.__name__
        if name == "getattr":
            return "" if node.args[1] in _SHAPES else f"the attribute {node.args[1]}"
        if name == "eq" and all(user.target is torch._assert for user in node.users):
            return ""
        if name in ("add_", "add") and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr":
            return ""  # num_batches_tracked
        return "" if name in _FUNCTIONS or name.removesuffix("_") in _FUNCTIONS else name
    return ""


class _Operators(fx.Tracer):
    proxy_buffer_attributes = True  # otherwise changes of a buffer would happen while tracing

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_of_torch(m) and not isinstance(m, nn.Sequential)
