"""Random models of the kinds that users have: masks, callers, attachments, later changes.

``draw(seed)`` builds the same model each time. It builds and does not copy, since a forward on an instance would keep
calling the layers of the original.
"""

import functools
import os
import random
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import family_callers
import family_masks
import numpy as np
import torch
from family_callers import CALLERS, ODD_CALLERS, Caller, Whole, by_python, caller, closed, default
from family_masks import (
    CHANNELS,
    FLAGS,
    LOG,
    ODD_CHANNELS,
    ODD_SPATIALS,
    SPATIALS,
    C,
    Channel,
    Counting,
    Spatial,
    WithDefault,
    activation,
)
from torch import nn
from torch.nn.utils import parametrizations

__all__ = ["ODD_CHANNELS", "Caller", "Channel", "Spatial", "activation", "by_python", "caller"]


def counter_forward(part):
    def attach(block):
        layer = block.get_submodule(part)
        old = layer.forward
        layer.forward = lambda *args: LOG.append(part) or old(*args) * 1.5

    return attach


def bound_forward(block):
    block.forward = types.MethodType(lambda self, x: type(self).forward(self, x) * 2, block)


def partial_forward(block):
    block.forward = functools.partial(block.forward)


def hook(part, register="register_forward_hook"):
    def attach(block):
        getattr(block.get_submodule(part), register)(lambda *_: LOG.append(f"hook of {part}"))

    return attach


def hold(block):
    block.masks = [block.ca]
    block.forward = types.MethodType(lambda self, x: self.masks[0](x) * x + type(self).forward(self, x), block)


def hold_in_list(block):
    block.held = (block.sa,)


def compiled(part):
    def attach(block):
        setattr(block, part, torch.compile(block.get_submodule(part), backend="eager"))

    return attach


def first(block, kind=nn.Conv2d):
    return next(m for m in block.ca.modules() if isinstance(m, kind | nn.Linear))


def tie(block):
    block.sa.other = block.sa.conv


ATTACHED = {
    "forward of ca": counter_forward("ca"),
    "forward of sa": counter_forward("sa"),
    "forward of conv": counter_forward("sa.conv"),
    "forward of the block": bound_forward,
    "partial": partial_forward,
    "hook of ca": hook("ca"),
    "hook of sa.conv": hook("sa.conv"),
    "pre-hook of sa": hook("sa", "register_forward_pre_hook"),
    "backward hook": hook("sa", "register_full_backward_hook"),
    "held": hold,
    "held in a list": hold_in_list,
    "compiled ca": compiled("ca"),
    "compiled sa": compiled("sa"),
    "weight_norm": lambda block: parametrizations.weight_norm(first(block)),
    "spectral_norm": lambda block: parametrizations.spectral_norm(block.sa.conv),
    "dilated": lambda block: vars(block.sa.conv).update(dilation=(2, 2), padding=(2, 2)),
    "tied": tie,
}


def spatial_convolution(block):
    return next(m for m in block.sa.modules() if isinstance(m, nn.Conv2d))


def later_forward(part):
    def change(block):
        layer = spatial_convolution(block) if part == "conv" else block.get_submodule(part)
        old = layer.forward
        layer.forward = lambda *args: old(*args) * 0.5

    return change


def later_global(block):
    family_masks.DOUBLE = family_callers.DOUBLE = FLAGS["double"] = True
    os.environ["CBAM_FAMILY_DOUBLE"] = "1"


LATER = {
    "nothing": lambda block: None,
    "rate": lambda block: setattr(block, "rate", 0.5),
    "skip": lambda block: setattr(block, "skip", False),
    "late": lambda block: setattr(block, "late", 1),
    "downsample": lambda block: setattr(block, "downsample", nn.Identity()),
    "dilation": lambda block: vars(spatial_convolution(block)).update(dilation=(2, 2), padding=(2, 2)),
    "forward of ca": later_forward("ca"),
    "forward of conv": later_forward("conv"),
    "forward of the block": later_forward(""),
    "Identity": lambda block: setattr(block, "sa", nn.Identity()),
    "globals": later_global,
    "temperature": lambda block: setattr(block.ca, "temperature", 0.1),
}


@dataclass
class Drawn:
    """A model, its parts, and a later change after the tested one."""

    model: nn.Sequential
    parts: tuple[str, ...]
    later: Callable[[nn.Module], None]


def reset() -> None:
    """Reset the state shared by the models."""
    family_masks.DOUBLE = family_callers.DOUBLE = FLAGS["double"] = False
    os.environ.pop("CBAM_FAMILY_DOUBLE", None)
    LOG.clear()
    Counting.calls = 0
    for function in (WithDefault.forward, default):
        function.__defaults__[0].clear()


def draw(seed: int) -> Drawn:
    """Half of the models have one odd thing, the others up to three."""
    reset()
    rng = random.Random(seed)
    odd = {
        rng.choice(("channel", "spatial", "caller", "caller", "attached", "later"))
        for _ in range(rng.choice((0, 1, 1, 3)))
    }
    channel = rng.choice(ODD_CHANNELS if "channel" in odd else CHANNELS)
    spatial = rng.choice(ODD_SPATIALS if "spatial" in odd else SPATIALS)
    kinds: list[Any] = [
        *ODD_CALLERS,
        type("Closed", (Caller,), {"forward": closed()}),
        type("Default", (Caller,), {"forward": default}),
    ]
    kind = rng.choice(kinds if "caller" in odd else [*CALLERS, Whole, Whole])
    torch.manual_seed(seed)
    block = kind(channel(), spatial())
    attached = rng.choice([*ATTACHED]) if "attached" in odd else ""
    later = rng.choice([*LATER]) if "later" in odd or rng.random() < 0.2 else "nothing"
    if attached:
        ATTACHED[attached](block)
    model = nn.Sequential(nn.Conv2d(3, C, 1), block).double()
    name = getattr(channel, "__name__", "Channel"), getattr(spatial, "__name__", "max first"), kind.__name__
    return Drawn(model, (*name, attached, later), LATER[later])


INPUTS = [(2, 6, 5, 1.0), (1, 3, 4, 30.0), (4, 13, 12, 1.0)]


def observe(drawn: Drawn, seed: int) -> list[Any]:
    """All that can be seen of a model in use: outputs, gradients, generators, calls; errors as such."""
    found: list[Any] = []
    model = drawn.model
    for part in range(2):
        for training in (False, True):
            for N, H, W, scale in INPUTS:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                x = (scale * torch.randn(N, 3, H, W, dtype=torch.float64)).requires_grad_()
                LOG.clear()
                model.train(training).zero_grad()
                try:
                    for _ in range(2):
                        y = model(x)
                        y.square().sum().backward()
                    with torch.no_grad():
                        found.append(model(x))
                except Exception as error:
                    found.append(type(error).__name__)
                    continue
                # Whole tensors whatever their names and shapes: a replaced mask has its own.
                grads = sorted(0.0 if p.grad is None else float(p.grad.abs().sum()) for p in model.parameters())
                found += [y.detach(), x.grad, torch.tensor(grads)]
                found += [random.random(), float(np.random.rand()), float(torch.rand(())), tuple(LOG)]
        if part == 0:
            drawn.later(model[1])
    reset()
    return found


def differences(got: list[Any], wanted: list[Any]) -> list[str]:
    """The differences between two observations, up to rounding."""
    result = [] if len(got) == len(wanted) else ["other errors"]
    for i, (a, b) in enumerate(zip(got, wanted, strict=False)):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            same = a.shape == b.shape and torch.allclose(a, b, rtol=1e-7, atol=1e-8 * float(b.abs().max()))
        else:
            same = type(a) is type(b) and a == b
        if not same:
            result.append(f"{i}: {a!r:.80} instead of {b!r:.80}")
    return result
