"""Callers of two masks: one fused call if proved equal, left alone otherwise."""

import copy

import pytest
import torch
from public import ChannelMask, SpatialMask, results
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, ResNet

from cbam_fused import functional, replace_cbam


class MaskedBlock(BasicBlock):
    """As in the common resnet_cbam.py: the two masks belong to the block, which is their caller."""

    def __init__(self, inplanes, planes, *args, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        self.ca, self.sa = ChannelMask(planes, 4), SpatialMask()

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out = self.ca(out) * out
        out = self.sa(out) * out
        out += identity
        return self.relu(out)


class StemResNet(ResNet):
    """Masks after the stem and in the blocks."""

    def __init__(self):
        super().__init__(MaskedBlock, [1, 1, 1, 1], num_classes=3)
        self.ca, self.sa = ChannelMask(64, 4), SpatialMask()

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = torch.mul(x, self.ca(x))
        x = torch.mul(x, self.sa(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.maxpool(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def test_masks_of_a_resnet():
    torch.manual_seed(0)
    model = StemResNet().double()
    original = copy.deepcopy(model)
    report = replace_cbam(model)
    places = ["", "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert report.fused == {place: [("ca", "sa")] for place in places} and not report.skipped
    masks = [f"{place}.{mask}".lstrip(".") for place in places for mask in ("ca", "sa")]
    assert sorted(report.replaced) == sorted(masks)
    assert isinstance(model, StemResNet) and isinstance(model.layer1[0], MaskedBlock)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for got, want in zip(results(model, x), results(original, x), strict=True):
        torch.testing.assert_close(got[:2], want[:2])
        own = {"ca.fc1": "ca.squeeze", "ca.fc2": "ca.excite", "sa.conv1": "sa.look"}
        for name, grad in got[2].items():
            other = name
            for mine, theirs in own.items():
                other = other.replace(mine, theirs) if other.endswith(f"{mine}.weight") else other
            torch.testing.assert_close(grad, want[2][other])
    twin = copy.deepcopy(model)
    twin.layer1[0].ca.fc1.weight.data.zero_()
    torch.testing.assert_close(model.eval()(x), original.eval()(x))
    assert not torch.allclose(twin.eval()(x), original(x))


class InPlaceOnAlias(MaskedBlock):
    def forward(self, x):
        x = x * 2
        identity = x
        x += 1
        x = self.ca(x) * x
        x = self.sa(x) * x
        return x + identity


def test_in_place_arithmetic_stays_in_place():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), InPlaceOnAlias(8, 8)).double()
    expected = results(model)
    assert replace_cbam(model).fused == {"1": [("ca", "sa")]}
    for got, want in zip(results(model), expected, strict=True):
        torch.testing.assert_close(got[:2], want[:2])


def test_fused_pair_is_one_call(monkeypatch):
    model = nn.Sequential(MaskedBlock(8, 8))
    replace_cbam(model)
    calls = []
    monkeypatch.setattr(functional, "cbam", lambda x, *_, **__: calls.append("cbam") or x)
    monkeypatch.setattr(functional, "channel_gate", lambda *_: calls.append("channel_gate"))
    model(torch.randn(1, 8, 5, 5))
    assert calls == ["cbam"]


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


class WithConstant(MaskedBlock):
    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        return x + torch.ones(1, dtype=x.dtype)


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


def test_constants_in_the_traced_forward():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), WithConstant(8, 8)).double()
    expected = results(model)
    replace_cbam(model)
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
