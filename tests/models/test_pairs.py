"""Callers of two masks: one fused call if proved equal."""

import copy

import torch
from masked_block import MaskedBlock
from public import ChannelMask, SpatialMask, results
from torch import nn
from torchvision.models.resnet import ResNet

from cbam_fused import functional, replace_cbam


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


class WithConstant(MaskedBlock):
    def forward(self, x):
        x = self.ca(x) * x
        x = self.sa(x) * x
        return x + torch.ones(1, dtype=x.dtype)


def test_constants_in_the_traced_forward():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), WithConstant(8, 8)).double()
    expected = results(model)
    replace_cbam(model)
    for got, want in zip(results(model), expected, strict=True):
        torch.testing.assert_close(got[:2], want[:2])
