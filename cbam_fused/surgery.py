"""Changing a finished model: put a CBAM behind any of its sub-modules."""

import difflib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .modules import CBAM

CHILD = "cbam"


def insert_cbam(
    model: nn.Module,
    after: Iterable[str],
    *,
    reduction: int = 16,
    kernel_size: int = 7,
    factory: Callable[[int, int, int], nn.Module] = CBAM,
    example_input: Tensor | None = None,
) -> dict[str, nn.Module]:
    """Insert a CBAM behind each named sub-module, in place, without renaming a parameter.

    The new module becomes the child ``cbam`` of the named one (``layer1`` -> ``layer1.cbam``): appended if
    that is an nn.Sequential, called from a forward hook otherwise. Existing state_dict keys stay as they
    are, so pretrained weights load before the insertion, or after it with ``strict=False``. The width of
    each place is read off one forward pass in eval mode, which changes no buffer.

    Args:
        model: any CNN whose named sub-modules return (N, C, H, W).
        after: names as in ``model.named_modules()``, e.g. ``["layer1", "layer2.0.conv1"]``.
        reduction, kernel_size: as in :class:`cbam_fused.CBAM`.
        factory: builds the module from (channels, reduction, kernel_size); ``reference.CBAM`` for plain PyTorch.
        example_input: input of the forward pass; default zeros of shape (1, c, 224, 224), c from the first Conv2d.

    Returns:
        The inserted modules by their full name, on the device and in the dtype of their place.

    Raises:
        ValueError: a name that does not exist (the nearest ones are given), is repeated, already has a
            CBAM, is never called, or does not return (N, C, H, W) of one width. The model is then unchanged.
    """
    names = [after] if isinstance(after, str) else list(after)
    targets = _find(model, names)
    outputs = _dry_run(model, targets, example_input)
    built = {n: factory(outputs[n].shape[1], reduction, kernel_size) for n in names}
    for name, module in built.items():
        target, output = targets[name], outputs[name]
        module.to(output.device, output.dtype).train(target.training)
        target.add_module(CHILD, module)
        if type(target).forward is not nn.Sequential.forward:
            target.register_forward_hook(_call_child)
    return {f"{n}.{CHILD}": m for n, m in built.items()}


def _call_child(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return getattr(module, CHILD)(output)


def _find(model: nn.Module, names: list[str]) -> dict[str, nn.Module]:
    known = dict(model.named_modules())
    del known[""]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or list(known)[:3]
            raise ValueError(f"after: the model has no sub-module {name!r}; the nearest names are {', '.join(near)}")
        if isinstance(known[name], nn.ModuleDict | nn.ModuleList):
            raise ValueError(
                f"after: {name!r} is a {type(known[name]).__name__}, which may call every child of its own"
            )
        if hasattr(known[name], CHILD):
            raise ValueError(f"after: {name!r} already has a child named {CHILD!r}")
    if not names or len(set(names)) != len(names) or len({known[n] for n in names}) != len(names):
        raise ValueError(f"after must name at least one sub-module and each only once, got {names}")
    return {n: known[n] for n in names}


def _dry_run(model: nn.Module, targets: dict[str, nn.Module], example_input: Tensor | None) -> dict[str, Tensor]:
    """The output of each target in one forward pass in eval mode; the training flags are put back."""
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            if not isinstance(output, Tensor) or output.dim() != 4:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"after: {name!r} must return a tensor (N, C, H, W), got {got}")
            if name in outputs and outputs[name].shape[1] != output.shape[1]:
                raise ValueError(
                    f"after: {name!r} is called with {outputs[name].shape[1]} and {output.shape[1]} channels"
                )
            outputs[name] = output

        return hook

    training = {m: m.training for m in model.modules()}
    hooks = [m.register_forward_hook(record(n)) for n, m in targets.items()]
    try:
        with torch.no_grad():
            model.eval()(_default_input(model) if example_input is None else example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    for name in targets:
        if name not in outputs:
            raise ValueError(f"after: {name!r} is not called in the model's forward pass")
    return outputs


def _default_input(model: nn.Module) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            return torch.zeros(1, module.in_channels, 224, 224, device=weight.device, dtype=weight.dtype)
    raise ValueError("example_input is needed: the model has no Conv2d from which to guess its input")
