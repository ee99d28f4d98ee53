"""CBAM in a residual block of ResNet, before the addition, fused with addition and ReLU."""

import copy
import dis
import operator
import random
import types
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..hooks import has_hooks
from .class_swap import Substitute
from .generators import generator_states
from .preservation import holdings, preserved, same_holdings
from .selection import CHILD

REQUIRED = {"conv1", "bn1", "relu", "conv2", "bn2"}
OPTIONAL = {"conv3", "bn3", "downsample", CHILD}
DRAWS = 3


class ResidualBlock(Substitute):
    """BasicBlock or Bottleneck of torchvision, or a block with the same children, as relu(cbam(branch) + shortcut).

    A forward hook can call CBAM after the last BatchNorm, but cannot skip the addition and the ReLU of the block's own
    forward, which read and write the feature map again.
    """

    cbam: nn.Module
    relu: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        z, identity = _branch_and_shortcut(self, x)
        relu = self.relu
        if type(relu) is nn.ReLU and not has_hooks(relu) and "forward" not in relu.__dict__:
            return self.cbam(z, residual=identity, relu=True)
        return relu(self.cbam(z) + identity)


class Plain(nn.Module):
    """Replaces the CBAM of a block in the check: relu(z + residual), both optional."""

    def forward(self, z: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        y = z if residual is None else z + residual
        return torch.relu(y) if relu else y


def _branch_and_shortcut(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    if hasattr(block, "conv3"):
        z = block.bn3(block.conv3(block.relu(z)))
    return z, x if block.downsample is None else block.downsample(x)


def is_residual_block(module: nn.Module) -> bool:
    """Whether the module has exactly the children of a BasicBlock or Bottleneck, and optionally a CBAM."""
    children = {n for n, _ in module.named_children()}
    return (
        REQUIRED <= children <= REQUIRED | OPTIONAL
        and ("conv3" in children) == ("bn3" in children)
        and hasattr(module, "downsample")
        and not any(True for _ in module.parameters(recurse=False))
    )


def why_not_residual(block: nn.Module) -> str:
    """Why the forward of ResidualBlock cannot replace the block's own; empty if it can.

    torch.fx must find this expression in both modes. Then both forwards run in both modes, for several states of the
    random generators; they must return the same, leave the generators in the same states and change no attribute.
    A forward on the instance, or one that reads variables of its module, may change later.
    """
    if "forward" in vars(block):
        return "has a forward that was set on the instance"
    if variable := _variable_read(type(block), {"forward"}):
        return f"has a forward that reads the variable {variable}, which may change"
    with preserved(block):
        in_eval, in_training = (_expression(block, mode) for mode in (False, True))
    if isinstance(in_eval, str):
        return f"cannot be traced by torch.fx ({in_eval})"
    if in_eval != in_training:
        return "does something else in training than in eval mode"
    if in_eval != _expected(block):
        return "returns something else than relu(branch + shortcut)"
    return "" if _computes_the_same(block) else "does more than return relu(branch + shortcut)"


def _variable_read(cls: type, names: set[str], seen: set[object] | None = None) -> str:
    """A variable of a module or of an enclosing function that these methods of a class read; empty if none.

    Functions, classes and modules do not count. The functions and methods that they call are checked, too.
    """
    seen = set() if seen is None else seen
    for owner in cls.__mro__:
        if owner.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        for name in names & vars(owner).keys():
            method = vars(owner)[name]
            if found := _variable_of(getattr(method, "__func__", method), cls, seen):
                return found
    return ""


def _variable_of(function: object, cls: type, seen: set[object]) -> str:
    if isinstance(function, property):
        function = function.fget
    function = getattr(function, "__wrapped__", function)
    if not isinstance(function, types.FunctionType) or function in seen:
        return ""
    seen.add(function)
    if function.__module__ is not None and function.__module__.split(".")[0] == "torch":
        return ""
    values = dict(
        zip(function.__code__.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=True)
    )
    codes = [function.__code__]
    for code in codes:
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_GLOBAL" and step.argval in function.__globals__:
                values[step.argval] = function.__globals__[step.argval]
    for name, value in values.items():
        if isinstance(value, types.FunctionType):
            if found := _variable_of(value, cls, seen):
                return found
        elif not isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            return name
    return _variable_read(cls, {name for code in codes for name in code.co_names}, seen)


class _Children(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def _expression(block: nn.Module, mode: bool) -> tuple | str:
    """The expression that forward returns in a mode, and its number of operations; or torch.fx's error."""
    block.training = mode
    try:
        graph = _Children().trace(block)
    except Exception as error:  # Python code may raise anything for a proxy
        return f"{type(error).__name__}: {error}"

    def expression(node: Any) -> Any:
        if not isinstance(node, fx.Node):
            return repr(node)
        parts = [expression(a) for a in node.args]
        if node.op == "placeholder" or node.op == "output":
            return (node.op, *parts)
        if node.op == "call_module":
            return (node.target, *parts, repr(node.kwargs))
        if node.target in ADDITIONS:
            return ("add", *sorted(parts, key=repr), repr(node.kwargs))
        return (node.op, repr(node.target), *parts, repr(node.kwargs))

    *_, output = graph.nodes
    return expression(output), len(graph.nodes)


def _expected(block: Any) -> tuple:
    """The expression of relu(branch + shortcut)."""
    chain = ["conv1", "bn1", "relu", "conv2", "bn2", *(["relu", "conv3", "bn3"] if hasattr(block, "conv3") else [])]
    x = ("placeholder",)
    branch: tuple = x
    for name in chain:
        branch = (name, branch, "{}")
    shortcut = x if block.downsample is None else ("downsample", x, "{}")
    total = ("add", *sorted((branch, shortcut), key=repr), "{}")
    return ("output", ("relu", total, "{}")), len(chain) + (block.downsample is not None) + 4


def _computes_the_same(block: Any) -> bool:
    if block.conv1.weight.device.type == "meta":
        block = copy.deepcopy(block).to_empty(device="cpu")
        for tensor in (*block.parameters(), *block.buffers()):
            nn.init.constant_(tensor, 1)
    weight = block.conv1.weight
    for draw in range(DRAWS):
        rng = torch.Generator().manual_seed(draw)
        noise = torch.randn(2, block.conv1.in_channels, 8, 8, generator=rng, device="cpu")
        x = noise.to(weight.device, weight.dtype)
        for mode in (False, True):
            before, after = (_run(block, forward, x, mode, draw) for forward in (type(block).forward, _with_plain_cbam))
            if not _equal(before, after):
                return False
    return True


def _with_plain_cbam(block: Any, x: Tensor) -> Tensor:
    block._modules[CHILD] = Plain()
    try:
        return ResidualBlock.forward(block, x)
    finally:
        del block._modules[CHILD]


def _run(block: nn.Module, forward: Any, x: Tensor, mode: bool, draw: int) -> tuple[bool, list[object]]:
    """Whether the attributes are unchanged; and the result, buffers and states of generators."""
    with preserved(block), torch.set_grad_enabled(mode), torch.compiler.set_stance("force_eager"):
        for _ in range(draw):  # a different state of each generator
            torch.rand(1)
            random.random()
        block.train(mode)
        before = holdings(block)
        y = forward(block, x.clone())
        same = same_holdings(before, holdings(block))
        return same, [y.detach(), *(b.clone() for b in block.buffers()), generator_states(block)]


def _equal(a: tuple[bool, list[object]], b: tuple[bool, list[object]]) -> bool:
    if a[0] != b[0] or not a[0]:
        return False
    pairs = zip(a[1], b[1], strict=True)
    return all(
        torch.allclose(s, t, equal_nan=True) if isinstance(s, Tensor) and isinstance(t, Tensor) else s == t
        for s, t in pairs
    )
