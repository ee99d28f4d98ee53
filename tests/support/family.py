"""Small models drawn at random, of the kinds that people have: masks, callers, what is attached, what comes later.

``draw(seed)`` builds the same model each time. It is built anew, not copied, since a forward on an instance would keep
calling the layers of the one that it was made for.
"""

import functools
import os
import random
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from public import max_first, mean_first
from torch import nn
from torch.nn.utils import parametrizations

C, HIDDEN = 4, 2
LOG: list[str] = []  # what the models do besides computing
FLAGS = {"double": False}
DOUBLE = False


class Channel(nn.Module):
    """The tutorials' mask; subclasses change one thing."""

    act: Any = nn.ReLU

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, HIDDEN, 1, bias=False), nn.Conv2d(HIDDEN, C, 1, bias=False)
        self.relu = self.act()

    def mlp(self, x):
        return self.fc2(self.relu(self.fc1(x)))

    def forward(self, x):
        return torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))


class LinearChannel(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(C, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, C))

    def forward(self, x):
        b, c, _, _ = x.size()
        pools = x.mean(dim=[2, 3]), x.amax(dim=(2, 3))
        return sum(self.shared(p) for p in pools).sigmoid().view(b, c, 1, 1)


class Clamped(Channel):
    def mlp(self, x):
        return self.fc2(self.fc1(x).clamp(0, 1e9))


class Dropped(Channel):
    def mlp(self, x):
        return F.dropout(super().mlp(x), 1e-6, self.training)


class SmallMaps(Channel):
    def forward(self, x):
        mask = super().forward(x)
        return mask if x.shape[2] > 8 else mask / 2


class OneImage(Channel):
    def forward(self, x):
        if x.shape[0] == 4:
            return torch.ones_like(x[:, :, :1, :1])
        return super().forward(x)


class Flagged(Channel):
    def forward(self, x):
        return super().forward(x) * (2 if FLAGS["double"] else 1)


class GlobalFlag(Channel):
    def forward(self, x):
        return super().forward(x) * (2 if DOUBLE else 1)


class FromEnvironment(Channel):
    def forward(self, x):
        return super().forward(x) * (2 if os.environ.get("CBAM_FAMILY_DOUBLE") else 1)


class WithoutGradients(Channel):
    def forward(self, x):
        return super().forward(x) * (1 if torch.is_grad_enabled() else 2)


class Counting(Channel):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        LOG.append("mask")
        return super().forward(x)


class Warming(Channel):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return super().forward(x) / (1 if self.steps < 200 else 2)


class Tempered(Channel):
    temperature = 1.0

    def forward(self, x):
        return torch.sigmoid((self.mlp(x.mean((2, 3), True)) + self.mlp(x.amax((2, 3), True))) / self.temperature)


class WithDefault(Channel):
    def forward(self, x, seen=[]):  # noqa: B006
        seen.append(0)
        return super().forward(x) / (1 if len(seen) < 100 else 2)


class Called(Channel):
    def __call__(self, x):
        return super().__call__(x) / 2


def activation(kind):
    return type(kind.__name__ + "Channel", (Channel,), {"act": kind})


class Saturating(nn.Module):
    def forward(self, x):
        return torch.where(x > 1e6, torch.zeros_like(x), x.relu())


class Spatial(nn.Module):
    def __init__(self, formula=mean_first):
        super().__init__()
        self.formula, self.conv = formula, nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x):
        return self.formula(x, self.conv)


class LateDilated(Spatial):
    def forward(self, x):
        return super().forward(x) if x.shape[-1] < 12 else super().forward(x).flip(-1)


CHANNELS: list[Callable[[], nn.Module]] = [Channel, LinearChannel]
ODD_CHANNELS: list[Callable[[], nn.Module]] = [
    *(Clamped, Dropped, SmallMaps, OneImage, Flagged, GlobalFlag, FromEnvironment, WithoutGradients, Counting, Warming),
    *(Tempered, WithDefault, Called),
    *(
        activation(a)
        for a in (nn.ReLU6, nn.Hardswish, nn.Hardtanh, nn.Softsign, nn.RReLU, nn.GELU, nn.SiLU, Saturating)
    ),
]
SPATIALS = [Spatial, functools.partial(Spatial, max_first)]
ODD_SPATIALS = [LateDilated]


class Caller(nn.Module):
    """A block that multiplies two masks in itself; subclasses do something besides."""

    def __init__(self, ca, sa):
        super().__init__()
        self.conv, self.ca, self.sa, self.downsample = nn.Conv2d(C, C, 1), ca, sa, None
        self.rate, self.skip, self.calls, self.log = 0.0, True, 0, []

    def masked(self, x):
        x = self.ca(x) * x
        return self.sa(x) * x

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        return self.masked(self.conv(x)) + identity


class Whole(Caller):
    """A CBAM."""

    def __init__(self, ca, sa):
        nn.Module.__init__(self)
        self.ca, self.sa = ca, sa

    def forward(self, x):
        return self.masked(x)


def caller(name, forward):
    return type(name, (Caller,), {"forward": forward})


def by_python(self, x):
    return x if self.training and random.random() < 0.3 else self.masked(x)


def by_numpy(self, x):
    return x if self.training and np.random.rand() < 0.3 else self.masked(x)


def by_torch(self, x):
    return x if self.training and torch.rand(()).item() < 0.3 else self.masked(x)


def rarely(self, x):
    return x if random.random() < 0.02 else self.masked(x)


def noisy(self, x):
    return self.masked(x) + (1e-3 * torch.randn_like(x) if self.training else 0)


def dropping(self, x):
    return F.dropout(self.masked(x), 0.3, self.training)


def scheduled(self, x):
    return self.masked(x) * (1 - self.rate) if self.rate > 0 else self.masked(x)


def skipping(self, x):
    return self.masked(x) + x if self.skip else self.masked(x)


def counting(self, x):
    self.calls += 1
    return self.masked(x) if self.calls % 3 else x


def logging(self, x):
    LOG.append("called")
    return self.masked(x)


def listing(self, x):
    self.log.append(len(self.log))
    return self.masked(x) if len(self.log) < 4 else x


def flagged(self, x):
    return self.masked(x) * 2 if DOUBLE else self.masked(x)


def by_environment(self, x):
    return self.masked(x) * 2 if os.environ.get("CBAM_FAMILY_DOUBLE") else self.masked(x)


def without_gradients(self, x):
    return self.masked(x) if torch.is_grad_enabled() else x


def one_image(self, x):
    return x if x.shape[0] == 1 else self.masked(x)


def by_identity_of_dtype(self, x):
    return self.masked(x) if x.dtype is torch.float64 else x


def by_text(self, x):
    return x if f"{x.shape[0]}" == "1" else self.masked(x)


def by_set(self, x):
    return x if x.shape[0] in {1, 7} else self.masked(x)


def by_dictionary(self, x):
    return self.masked(x) * {1: 2.0}.get(x.shape[0], 1.0)


def by_type(self, x):
    return self.masked(x) if isinstance(x, torch.Tensor) else x


def by_attribute(self, x):
    return self.masked(x) if hasattr(self, "late") else self.masked(x) + x


def in_place(self, x):
    x = self.conv(x)
    x *= self.ca(x)
    return x * self.sa(x)


def again(self, x):
    y = self.ca(x) * x
    return self.sa(y) * y + self.ca(x)


def other_order(self, x):
    x = self.sa(x) * x
    return self.ca(x) * x


def parallel(self, x):
    return x * self.ca(x) * self.sa(x)


def scaled(self, x):
    x = 2 * self.ca(x) * x
    return self.sa(x) * x


def guarded(self, x):
    with torch.no_grad():
        y = self.conv(x.detach())
    return self.masked(x) + y


def tried(self, x):
    try:
        return self.masked(x) if bool(x.sum() > 0) else x
    except TypeError:
        return self.masked(x)


def closed():
    seen = []

    def forward(self, x):
        seen.append(1)
        return self.masked(x) if len(seen) < 9 else x

    return forward


def default(self, x, seen=[]):  # noqa: B006
    seen.append(1)
    return self.masked(x) if len(seen) % 7 else x


@torch.no_grad()
def _unused(x):
    return x


def decorated(self, x):
    return self.masked(x) + _unused(x)


@functools.wraps(Caller.forward)
def wrapped(self, *args):
    return Caller.forward(self, *args)


CALLERS = [Caller, caller("Skipping", skipping), caller("Scaled", scaled), caller("OtherOrder", other_order)]
ODD_CALLERS = [
    caller(f.__name__, f)
    for f in (
        *(by_python, by_numpy, by_torch, rarely, noisy, dropping, scheduled, skipping, counting, logging, listing),
        *(flagged, by_environment, without_gradients, one_image, by_identity_of_dtype, by_text, by_set, by_dictionary),
        *(by_type, by_attribute, in_place, again, parallel, guarded, tried, decorated, wrapped),
    )
]


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
    globals()["DOUBLE"] = FLAGS["double"] = True
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
    """A model, what it consists of, and what is done to it after the change that is tested."""

    model: nn.Sequential
    parts: tuple[str, ...]
    later: Callable[[nn.Module], None]


def reset() -> None:
    """What the models share is as at the start."""
    globals()["DOUBLE"] = FLAGS["double"] = False
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
    """What differs between two observations, up to rounding."""
    result = [] if len(got) == len(wanted) else ["other errors"]
    for i, (a, b) in enumerate(zip(got, wanted, strict=False)):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            same = a.shape == b.shape and torch.allclose(a, b, rtol=1e-7, atol=1e-8 * float(b.abs().max()))
        else:
            same = type(a) is type(b) and a == b
        if not same:
            result.append(f"{i}: {a!r:.80} instead of {b!r:.80}")
    return result
