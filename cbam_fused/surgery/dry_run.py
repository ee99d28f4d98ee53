"""Forward passes that leave a model as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients; afterwards every module has its own mode again.

    Compiled code runs eagerly meanwhile, as it does not see hooks that came after the compilation.
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
    """What one call of a module returned; shape is None where that was no tensor."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None
    type_name: str


def observe(model: nn.Module, example_input: Tensor) -> dict[str, list[Output]]:
    """One forward pass in eval mode: the outputs of each call of each sub-module, by its name, in order of calls."""
    seen: dict[str, list[Output]] = {}

    def record(name: str):
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            shape, dtype, device = None, None, None
            if isinstance(output, Tensor):
                shape, dtype, device = tuple(output.shape), output.dtype, output.device
            seen.setdefault(name, []).append(Output(shape, dtype, device, type(output).__name__))

        return hook

    hooks = [m.register_forward_hook(record(n)) for n, m in model.named_modules() if n]
    try:
        with evaluating(model):
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def default_input(model: nn.Module) -> Tensor:
    """Noise of shape (1, c, 224, 224), c from the first Conv2d; the global random state stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            rng = torch.Generator().manual_seed(0)
            noise = torch.randn(1, module.in_channels, 224, 224, generator=rng, device="cpu")
            return noise.to(module.weight.device, module.weight.dtype)
    raise ValueError("example_input is needed: the model has no Conv2d from which to guess its input")


def channel_axis(model: nn.Module, shape: tuple[int, ...], image: Tensor) -> int:
    """1 if a feature map of this shape is (N, C, H, W), 3 if it is (N, H, W, C).

    Only networks with LayerNorm, such as Swin, keep channels last. In these H and W are the two neighbouring axes
    in proportion to the image's sides h and w: h / H = w / W up to the rounding of H and W by less than 1 each.

    Raises:
        ValueError: both readings fit, or neither.
    """
    if not any(isinstance(m, nn.LayerNorm) for m in model.modules()):
        return 1
    h, w = image.shape[-2:]
    fits = {axis: abs(h * W - w * H) <= h + w for axis, (H, W) in ((1, shape[2:]), (3, shape[1:3]))}
    if fits[1] == fits[3]:
        raise ValueError(
            f"the width of a feature map {shape} cannot be found: for an image of {h} x {w} "
            f"{'more than' if fits[1] else 'not even'} one reading fits; give an example_input of another size"
        )
    return 1 if fits[1] else 3
