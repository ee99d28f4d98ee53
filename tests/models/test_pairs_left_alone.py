"""Callers of two masks that are not proved equal to one fused call are left alone."""

import pytest
import torch
from masked_block import MaskedBlock
from public import results
from torch import nn
from torch.utils.checkpoint import checkpoint

from cbam_fused import replace_cbam


class Reused(MaskedBlock):
    def forward(self, x):
        mask = self.ca(x)
        x = mask * x
        x = self.sa(x) * x
        return x + mask


class Between(MaskedBlock):
    def forward(self, x):
        x = self.ca(x) * x
        y = x.relu()
        return self.sa(y) * x


class OtherOrder(MaskedBlock):
    def forward(self, x):
        x = self.sa(x) * x
        return self.ca(x) * x


class OnlyInTraining(MaskedBlock):
    def forward(self, x):
        if self.training:
            x = self.ca(x) * x
            x = self.sa(x) * x
        return x


class ByValue(MaskedBlock):
    def forward(self, x):
        if x.sum() > 0:
            x = self.ca(x) * x
            x = self.sa(x) * x
        return x


class ByType(MaskedBlock):
    """A decision that torch.fx gets wrong: a proxy is not a tensor."""

    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else x + 1
        x = self.ca(x) * x
        return self.sa(x) * x


class WithDefault(MaskedBlock):
    def forward(self, x, identity=None):
        x = self.ca(x) * x
        x = self.sa(x) * x
        return x if identity is None else x + identity


class WithAutocast(MaskedBlock):
    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        with torch.autocast("cpu", enabled=False):
            return self.conv1(x)


class WithNoGrad(MaskedBlock):
    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        with torch.no_grad():
            y = self.conv1(x.detach())
        return x + y


class NoGradInHelper(MaskedBlock):
    @torch.no_grad()
    def helper(self, x):
        return self.conv1(x)

    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        return x + self.helper(x.detach())


class GradSwitched(MaskedBlock):
    """No ``with``: the gradients of the parameters show it."""

    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        torch._C._set_grad_enabled(False)
        y = self.conv1(x.detach())
        torch._C._set_grad_enabled(True)
        return x + y


class AutocastSwitched(MaskedBlock):
    """The same, for autocast: the dtype of the output shows it."""

    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        before = torch.is_autocast_enabled("cpu")
        torch.set_autocast_enabled("cpu", False)
        x = self.conv1(x)
        torch.set_autocast_enabled("cpu", before)
        return x


class WithCheckpoint(MaskedBlock):
    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        return checkpoint(self.conv1, x, use_reentrant=False)


class Stateful(MaskedBlock):
    def __init__(self, *args):
        super().__init__(*args)
        self.calls, self.log, self.seen, self.inner = 0, [], {"x": []}, nn.Identity()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.note(x)
        x = self.ca(x) * x
        return self.sa(x) * x


class Stores(Stateful):
    def note(self, x):
        self.inner.last = x


class Counts(Stateful):
    def note(self, x):
        self.calls += 1


class Logs(Stateful):
    def note(self, x):
        self.log.append(x)


class LogsDeep(Stateful):
    def note(self, x):
        self.seen["x"].append(x)


class CountsInBuffer(Stateful):
    def note(self, x):
        self.total.add_(1)


MORE = [WithAutocast, WithNoGrad, NoGradInHelper, GradSwitched, AutocastSwitched, WithCheckpoint]
MORE += [Stores, Counts, Logs, LogsDeep]


@pytest.mark.parametrize("kind", MORE)
def test_what_a_graph_lacks(kind):
    """It is not fused, and tracing has no lasting effect."""
    model = nn.Sequential(kind(8, 8))
    report = replace_cbam(model)
    assert len(report.replaced) == 2 and not report.fused and type(model[0]) is kind
    assert not hasattr(getattr(model[0], "inner", None), "last") and torch.is_grad_enabled()
    if isinstance(model[0], Stateful):
        assert (model[0].calls, model[0].log, model[0].seen) == (0, [], {"x": []})


def test_buffers_go_on_counting():
    model = nn.Sequential(CountsInBuffer(8, 8))
    assert replace_cbam(model).fused == {"0": [("ca", "sa")]} and model[0].total == 0
    for _ in range(2):
        model(torch.randn(1, 8, 5, 5))
    assert model[0].total == 2


class InPlace(MaskedBlock):
    def forward(self, x):
        x = x * 1
        x *= self.ca(x)
        return x * self.sa(x)


@pytest.mark.parametrize("kind", [Reused, Between, OtherOrder, OnlyInTraining, ByValue, ByType, WithDefault, InPlace])
def test_patterns_that_are_not_proved(kind):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), kind(8, 8)).double()
    expected = results(model) if kind is not InPlace else None
    attributes = {*model[1].__dict__}
    report = replace_cbam(model)
    assert len(report.replaced) == 2 and not report.fused
    assert type(model[1]) is kind and {*model[1].__dict__} == attributes
    if expected:
        for got, want in zip(results(model), expected, strict=True):
            torch.testing.assert_close(got[:2], want[:2])


def test_hooks_on_masks_prevent_fusing():
    model = nn.Sequential(MaskedBlock(8, 8))
    calls = []
    model[0].ca.register_forward_hook(lambda *_: calls.append(1))
    report = replace_cbam(model)
    assert "0.ca" in report.replaced and not report.fused
    model(torch.randn(1, 8, 5, 5))
    assert calls == [1]
