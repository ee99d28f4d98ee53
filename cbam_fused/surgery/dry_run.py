"""Forward passes that do not change a model."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients; at the end the mode of every module is restored.

    Compiled code runs eagerly in the block, since it does not see hooks added after the compilation.
    """
    training = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model.eval()
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


class Output(NamedTuple):
    """The result of one call of a module; shape is None if it is not a tensor."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None
    type_name: str


Seen = dict[nn.Module, list[Output]]


def call(model: nn.Module, example: Any) -> Any:
    """The model's result for an example: a tensor, a tuple of arguments, or a dictionary of keyword arguments.

    A dictionary whose keys are not arguments of forward is the only argument, and so is any other object.
    """
    if isinstance(example, tuple):
        return model(*example)
    if isinstance(example, dict) and _are_keywords(model, example):
        return model(**example)
    return model(example)


def _are_keywords(model: nn.Module, example: dict) -> bool:
    try:
        inspect.signature(model.forward).bind(**example)
    except (TypeError, ValueError):  # a missing argument, a key that is not a string, or no signature
        return False
    return True


def observe(model: nn.Module, example: Any) -> tuple[Seen, Any]:
    """One call in the model's current mode: the outputs of each call of each module, and the model's result."""
    seen: Seen = {}

    def record(module: nn.Module, args: tuple, output: object) -> None:
        shape, dtype, device = None, None, None
        if isinstance(output, Tensor):
            shape, dtype, device = tuple(output.shape), output.dtype, output.device
        seen.setdefault(module, []).append(Output(shape, dtype, device, type(output).__name__))

    # A ScriptModule accepts no hooks, and calls its sub-modules without their hooks.
    hooks = [m.register_forward_hook(record) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    try:
        return seen, call(model, example)
    finally:
        for hook in hooks:
            hook.remove()


def default_input(model: nn.Module, batch: int = 1) -> Tensor:
    """Noise of shape (batch, c, 224, 224), c from the first Conv2d; the global random state does not change."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            rng = torch.Generator().manual_seed(0)
            noise = torch.randn(batch, module.in_channels, 224, 224, generator=rng, device="cpu")
            return noise.to(module.weight.device, module.weight.dtype)
    raise ValueError(
        "example_input must be a tensor, a tuple of arguments or a dictionary for a model without Conv2d, got None"
    )


def image_size(example: Any) -> tuple[int, int] | None:
    """Height and width of the first image (N, C, H, W) or (C, H, W) in the example; None without an image."""
    found = [t for t in tree_leaves(example) if isinstance(t, Tensor) and t.dim() in (3, 4)]
    images = [t for t in found if t.dim() == 4] or found
    return (int(images[0].shape[-2]), int(images[0].shape[-1])) if images else None


def channel_axis(model: nn.Module, shape: tuple[int, ...], image: tuple[int, int] | None) -> int:
    """1 if a feature map of this shape is (N, C, H, W), 3 if it is (N, H, W, C).

    Only networks with LayerNorm, such as Swin, keep channels last. There H and W are the two neighbouring axes
    proportional to the sides h and w of the image: h / H = w / W up to the rounding of H and W by less than 1 each.

    Raises:
        ValueError: both axes fit, or neither, or there is no image.
    """
    if not any(isinstance(m, nn.LayerNorm) for m in model.modules()):
        return 1
    if image is None:
        raise ValueError(f"the width of a feature map {shape} cannot be found: example_input has no image (N, C, H, W)")
    h, w = image
    fits = {axis: abs(h * W - w * H) <= h + w for axis, (H, W) in ((1, shape[2:]), (3, shape[1:3]))}
    if fits[1] == fits[3]:
        raise ValueError(
            f"the width of a feature map {shape} cannot be found: for an image of {h} x {w} "
            f"{'more than' if fits[1] else 'not even'} one reading fits; give an example_input of another size"
        )
    return 1 if fits[1] else 3
