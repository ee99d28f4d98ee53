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
from .identity import identity_
from .preservation import global_generators
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
    """Insert a CBAM behind sub-modules of a model, in place, without renaming a parameter.

    The new module becomes the child ``cbam`` of the module that it follows (``layer1`` -> ``layer1.cbam``). State_dict
    keys stay as they are, so pretrained weights load before the insertion, or after it with ``strict=False``.

    The model is run five times: in eval and in training mode before and after, with stand-ins that pass on their
    input, and in eval mode with the CBAMs. Each must be called once for each call of the module that it follows, and
    all else must be as before; tensors, attributes, modes and random generators are then put back. One or two more
    runs where a stage calls its new child itself. Code compiled by torch.compile before is forgotten.

    Args:
        model: any network whose chosen sub-modules return (N, C, H, W), or (N, H, W, C) as those of Swin do.
        after: names as in ``model.named_modules()``, e.g. ``["layer1", "layer2.0.conv1"]``.
        where: instead of after, a preset, a compiled pattern that matches whole names, or a predicate of
            (name, module). The presets (docs/guide/surgery.md says what they mean for which network): "each_layer", at
            the end of every stage; "last", of the last one; "stem_last", of the stem and the last one; "in_block", in
            every residual block before the addition, in ResNets with the fused relu(cbam(z) + identity).
        reduction, kernel_size: as in :class:`cbam_fused.CBAM`.
        factory: builds the module from (channels, reduction, kernel_size); ``reference.CBAM`` for plain PyTorch.
        init: "default", with which y is about x / 4 at first, or "identity", with which y is almost x; the latter
            needs a factory of modules with biases.
        example_input: the model's input, a tensor, a tuple of arguments, or a dictionary of keyword arguments; any
            other dictionary, and a list, is the one argument. Default: noise of shape (1, c, 224, 224), two images in
            training mode, c from the first Conv2d.

    Returns:
        The inserted modules by their full name, on the device and in the dtype of their place; where this returns
            halves, in the dtype of the parameters there, as those of autocast are float32.

    Raises:
        ValueError: a name or preset that does not exist (the nearest ones are given), a preset that does not fit the
            network, nothing chosen; a place that already has a CBAM, is never called, or does not return feature maps
            of one width; one where CBAM is not called once for each call, or something else is different; an init that
            the module cannot have; a model that does not take the default noise, has lazy modules, is a ScriptModule
            or wrapped by DistributedDataParallel or FSDP.
        TypeError: both or neither of after and where, or one of a wrong type; an unknown keyword; init="identity" with
            a factory whose modules have no ``gates(x)``.
        Exception: what the model raises for example_input. The model is unchanged after any of these.
    """
    choice = after if where is None else where
    if choice is None or (after is not None and where is not None):
        raise TypeError("insert_cbam needs either after= (names) or where= (a preset, pattern or predicate)")
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    _check_model(model)
    network = unwrapped(model)
    names = {m: n for n, m in model.named_modules()}
    argument = "after" if where is None else "where"
    if isinstance(after, str) and after in PRESETS and after not in names.values():
        raise ValueError(f"after: the model has no sub-module {after!r}; presets go to where=")
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
        built = {m: factory(width, reduction, kernel_size) for m, (width, _) in places.items()}
        for target, module in built.items():
            if target in fused:
                _check_epilogue(module, names[target])
            if init == "identity":
                identity_(module, places[target][0])
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


def remove_cbam(model: nn.Module) -> list[str]:
    """Take out every CBAM that insert_cbam put in; the model is then as it was before.

    Returns:
        The names of the removed modules; none if there were none.

    Raises:
        ValueError: a residual block that has got another class since, such as that of fully_shard; the model is then
            unchanged.
    """
    holders = {n: m for n, m in model.named_modules() if HANDLES in vars(m)}
    for name, module in holders.items():
        if isinstance(module, ResidualBlock) and type(module).__bases__[0] is not ResidualBlock:
            raise ValueError(
                f"remove_cbam: {name} has got another class since insert_cbam, such as that of a parametrization or of "
                "fully_shard; remove that first"
            )
    for module in holders.values():
        _detach(module)
    if holders:
        _forget_compiled_code()
    return [f"{n}.{CHILD}" if n else CHILD for n in holders]


def _check_model(model: nn.Module) -> None:
    """Refuse a model to which a new module would not belong, or whose forward is not Python's any more."""
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


def _check_epilogue(module: nn.Module, name: str) -> None:
    if not {"residual", "relu"} <= inspect.signature(module.forward).parameters.keys():
        raise ValueError(f"factory: for {name!r} the module must take residual= and relu= as cbam_fused.CBAM does")


def _forget_compiled_code() -> None:
    """Code that was compiled before does not see what came, and calls what went."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _place(
    model: nn.Module, name: str, module: nn.Module, seen: Seen, image: tuple[int, int] | None, argument: str
) -> tuple[int, int]:
    """The width of the feature maps that a module returns, and their channel axis."""
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        raise ValueError(f"{argument}: {name!r} is a {type(module).__name__}, which may call every child of its own")
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
    """The output's, but halves may be those of autocast: then that of the parameters, else GradScaler refuses."""
    if output.dtype not in (torch.float16, torch.bfloat16):
        return output.dtype
    parameters = (*target.parameters(), *model.parameters())
    return next((p.dtype for p in parameters if p.is_floating_point()), output.dtype)


def _attach(target: nn.Module, module: nn.Module, *, fused: bool, nhwc: bool) -> None:
    """Make the module the target's child, and the target call it.

    A hook leaves the target's class alone, which quantisation and counters of operations go by; so the class changes
    only where a hook does not do. The handles of the hooks are kept on the target: they are copied and pickled with
    it, and with them PyTorch knows in another process which numbers of hooks are taken.
    """
    setattr(target, HANDLES, handles := [])
    target.add_module(CHILD, module)
    plain = "forward" not in vars(target) and type(target).forward is nn.Sequential.forward  # which calls every child
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
    """A view: (N, H, W, C) in memory is (N, C, H, W) in channels_last, which CBAM serves as it is."""
    return (args[0].permute(0, 3, 1, 2),)


def _to_nhwc(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.permute(0, 2, 3, 1)
