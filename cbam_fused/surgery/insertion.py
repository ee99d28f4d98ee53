"""insert_cbam and remove_cbam."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..keywords import names_keywords
from ..modules import CBAM
from .class_swap import restore, substitute
from .dry_run import Output, Seen, channel_axis, image_size
from .generators import global_generators
from .identity import identity_
from .presets import PRESETS, preset_places
from .residual import ResidualBlock, is_residual_block
from .selection import CHILD, HANDLES, select, unwrapped
from .verification import Example, Probe, call_child, verify

INITS = ("default", "identity")


@names_keywords
def insert_cbam(
    model: nn.Module,
    after: str | Iterable[str] | None = None,
    *,
    where: str | re.Pattern | Callable[[str, nn.Module], bool] | None = None,
    reduction: int = 16,
    kernel_size: int = 7,
    factory: Callable[[int, int, int], nn.Module] = CBAM,
    init: str = "default",
    example_input: Any = None,
) -> dict[str, nn.Module]:
    """Insert a CBAM after sub-modules of a model, in place, without renaming a parameter.

    The new module becomes the child ``cbam`` of the module that it follows (``layer1`` -> ``layer1.cbam``). State_dict
    keys do not change: pretrained weights load before the insertion, or after it with ``strict=False``. The model runs
    five to seven times, in eval and in training mode, to check that each CBAM is called once per call of the module
    that it follows and that nothing else changes. Tensors, attributes, modes and random generators are then restored.
    Code that torch.compile compiled before is discarded.

    Args:
        model: any network whose chosen sub-modules return (N, C, H, W), or (N, H, W, C) as in Swin.
        after: names as in ``model.named_modules()``, e.g. ``["layer1", "layer2.0.conv1"]``.
        where: instead of after, a preset, a compiled pattern that matches whole names, or a predicate of
            (name, module). The presets are "each_layer", the end of every stage; "last", the last of these;
            "stem_last", the stem and the last; "in_block", every residual block before the addition, in ResNets with
            the fused relu(cbam(z) + identity). docs/guide/surgery.md lists the places per network.
        reduction, kernel_size: as in :class:`cbam_fused.CBAM`.
        factory: builds the module from (channels, reduction, kernel_size); ``reference.CBAM`` for plain PyTorch.
        init: "default", where y is about x / 4 at first, or "identity", where y is almost x. "identity" needs a
            factory of modules with biases.
        example_input: the model's input: a tensor, a tuple of arguments, or a dictionary of keyword arguments; any
            other dictionary, and a list, is the only argument. Default: noise of shape (1, c, 224, 224), two images
            in training mode, c from the first Conv2d.

    Returns:
        The inserted modules by their full name, on the device and in the dtype of the output that they follow. If
        that is a half type, the dtype of the parameters there, since autocast keeps them in float32.

    Raises:
        ValueError: an unknown name or preset (with the nearest ones), a preset that does not fit the network, no
            sub-module chosen; a place that has a CBAM, is never called, or does not return feature maps of one width;
            a place where the checks fail; an init that the module does not support; a model that rejects the default
            noise, has lazy modules, is a ScriptModule or wrapped by DistributedDataParallel or FSDP.
        TypeError: both or neither of after and where, or a wrong type; an unknown keyword; init="identity" with a
            factory whose modules have no ``gates(x)``.
        Exception: errors of the model for example_input. The model is unchanged after any error.
    """
    names = {m: n for n, m in model.named_modules()}
    argument, choice = _check_arguments(names, after, where, init)
    _check_model(model)
    network = unwrapped(model)
    # Names are checked before the forward pass, which may be long.
    preset = where if isinstance(where, str) else None
    targets = [] if preset is not None else [unwrapped(m) for m in select(model, choice, argument).values()]
    example, undo = Example(network, example_input), global_generators(network)
    attached: list[nn.Module] = []
    try:
        seen, image = example.seen, image_size(example.inputs[False])
        if preset is not None:
            targets = [network.get_submodule(n) for n in preset_places(preset, network, seen, image)]
        places = {m: _place(network, names[m], m, seen, image, argument) for m in targets}
        fused = {m for m in targets if where == "in_block" and is_residual_block(m)}
        built = {m: _built(factory(width, reduction, kernel_size), width, init) for m, (width, _) in places.items()}
        for target in filter(fused.__contains__, targets):
            _check_epilogue(built[target], names[target])
        for target, module in built.items():
            output = seen[target][0]
            module.to(output.device, _dtype(network, target, output)).train(target.training)
            attached.append(target)
            _attach(target, module, fused=target in fused, nhwc=places[target][1] == 3)
        verify(example, {m: Probe(names[m], m in fused) for m in targets}, names, argument)
    except BaseException:
        for target in attached:
            _detach(target)
        for step in undo:
            step()
        raise
    _forget_compiled_code()
    return {f"{names[target]}.{CHILD}": module for target, module in built.items()}


def _check_arguments(names: dict[nn.Module, str], after: Any, where: Any, init: str) -> tuple[str, Any]:
    """The given one of after and where: the name of the argument, and its value."""
    if (after is None) == (where is None):
        raise TypeError("insert_cbam needs either after= (names) or where= (a preset, pattern or predicate)")
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    if isinstance(after, str) and after in PRESETS and after not in names.values():
        raise ValueError(f"after must name sub-modules, got the preset {after!r}; pass it as where=")
    return ("after", after) if where is None else ("where", where)


def remove_cbam(model: nn.Module) -> list[str]:
    """Remove every CBAM that insert_cbam inserted, and restore the original model.

    Returns:
        The names of the removed modules.

    Raises:
        ValueError: the class of a residual block changed since, for instance by fully_shard. The model is then
            unchanged.
    """
    holders = {n: m for n, m in model.named_modules() if HANDLES in vars(m)}
    for name, module in holders.items():
        if isinstance(module, ResidualBlock) and type(module).__bases__[0] is not ResidualBlock:
            raise ValueError(
                f"remove_cbam: the class of {name} changed after insert_cbam, for instance by a parametrization or "
                "fully_shard; remove that first"
            )
    for module in holders.values():
        _detach(module)
    if holders:
        _forget_compiled_code()
    return [f"{n}.{CHILD}" if n else CHILD for n in holders]


def _check_model(model: nn.Module) -> None:
    """Raise for a model that cannot take a new module, or whose forward is no longer Python."""
    for name, module in model.named_modules():
        kinds = {c.__name__ for c in type(module).__mro__}
        if found := kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}:
            raise ValueError(
                f"insert_cbam: {name or 'the model'} is a {found.pop()}, which would not average the gradients of new "
                "parameters; insert first, then wrap"
            )
        if isinstance(module, torch.jit.ScriptModule) and not name:
            raise ValueError(
                "insert_cbam: the model is a ScriptModule, which cannot be changed; insert before scripting"
            )
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module._parameters.values()):
            raise ValueError(
                f"insert_cbam: {name} has no parameters before the first forward pass; run the model once first"
            )


def _built(module: nn.Module, channels: int, init: str) -> nn.Module:
    if init == "identity":
        identity_(module, channels)
    return module


def _check_epilogue(module: nn.Module, name: str) -> None:
    if not {"residual", "relu"} <= inspect.signature(module.forward).parameters.keys():
        raise ValueError(f"factory: the module for {name!r} must accept residual= and relu= like cbam_fused.CBAM")


def _forget_compiled_code() -> None:
    """Compiled code does not see inserted modules, and calls removed ones."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _place(
    model: nn.Module, name: str, module: nn.Module, seen: Seen, image: tuple[int, int] | None, argument: str
) -> tuple[int, int]:
    """The number of channels of the feature maps that a module returns, and the channel axis."""
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        raise ValueError(f"{argument}: {name!r} is a {type(module).__name__}, which may call all its children")
    if hasattr(module, CHILD):
        raise ValueError(f"{argument}: {name!r} already has a child named {CHILD!r}")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"{argument}: {name!r} is a ScriptModule, which cannot be changed; insert before scripting")
    if module not in seen:
        raise ValueError(f"{argument}: {name!r} is not called in the model's forward pass")
    axes = set()
    for output in seen[module]:
        shape = output.shape
        if shape is None or len(shape) != 4:
            got = output.type_name if shape is None else shape
            raise ValueError(f"{argument}: {name!r} must return a tensor (N, C, H, W), got {got}")
        if output.dtype is None or not output.dtype.is_floating_point:
            raise ValueError(f"{argument}: {name!r} must return floating-point values, got {output.dtype}")
        axis = channel_axis(model, shape, image)
        axes.add((shape[axis], axis))
    if len(axes) > 1:
        widths = " and ".join(str(width) for width, _ in sorted(axes))
        raise ValueError(f"{argument}: {name!r} is called with {widths} channels")
    return axes.pop()


def _dtype(model: nn.Module, target: nn.Module, output: Output) -> torch.dtype | None:
    """The output's dtype; for a half type, which may come from autocast, the parameters' dtype, as GradScaler needs."""
    if output.dtype not in (torch.float16, torch.bfloat16):
        return output.dtype
    parameters = (*target.parameters(), *model.parameters())
    return next((p.dtype for p in parameters if p.is_floating_point()), output.dtype)


def _attach(target: nn.Module, module: nn.Module, *, fused: bool, nhwc: bool) -> None:
    """Make the module the target's child, and make the target call it.

    A hook does not change the target's class, which quantisation and operation counters use; so the class changes only
    if a hook is not enough. The target keeps the handles of the hooks: they are copied and pickled with it, and tell
    PyTorch in another process which hook ids are in use.
    """
    setattr(target, HANDLES, handles := [])
    target.add_module(CHILD, module)
    plain = "forward" not in vars(target) and type(target).forward is nn.Sequential.forward  # it calls every child
    if fused:
        substitute(target, ResidualBlock)
    elif not plain:
        handles.append(target.register_forward_hook(call_child))
    if nhwc:
        handles += [module.register_forward_pre_hook(_to_nchw), module.register_forward_hook(_to_nhwc)]


def _detach(target: nn.Module) -> None:
    """Undo _attach()."""
    for handle in vars(target).pop(HANDLES, ()):
        handle.remove()
    if isinstance(target, ResidualBlock):
        restore(target)
    target._modules.pop(CHILD, None)


def _to_nchw(module: nn.Module, args: tuple) -> tuple:
    """A view: (N, H, W, C) in memory is (N, C, H, W) in channels_last, which CBAM supports."""
    return (args[0].permute(0, 3, 1, 2),)


def _to_nhwc(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.permute(0, 2, 3, 1)
