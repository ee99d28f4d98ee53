"""Masks of the random models in family.py: the tutorials' and odd ones, which differ in one point each."""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from public import max_first, mean_first
from torch import nn

C, HIDDEN = 4, 2
LOG: list[str] = []  # side effects of the models
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
