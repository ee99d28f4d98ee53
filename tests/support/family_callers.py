"""Callers of two masks in the random models of family.py: plain ones and odd ones, which do one more thing each."""

import functools
import os
import random

import numpy as np
import torch
import torch.nn.functional as F
from family_masks import LOG, C
from torch import nn

DOUBLE = False


class Caller(nn.Module):
    """A caller of two masks; subclasses do one more thing."""

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
