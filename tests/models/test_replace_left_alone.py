"""replace_cbam leaves modules alone that would lose a part of their interface or that others share."""

import pytest
import torch
from public import ChannelMask, SpatialMask
from torch import nn

from cbam_fused import replace_cbam


class Named(nn.Module):
    """A CBAM whose children have the names of the new one's; ``scaled``: they return x times the mask."""

    def __init__(self, channel=None, scaled=False):
        super().__init__()
        self.ca, self.sa, self.scaled = channel or (Scaled if scaled else ChannelMask)(16, 3), SpatialMask(), scaled

    def forward(self, x):
        x = self.ca(x) if self.scaled else x * self.ca(x)
        return x * self.sa(x)


class Scaled(ChannelMask):
    def forward(self, x):
        return x * super().forward(x)


class CallsChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.cbam = Named(scaled=True)

    def forward(self, x):
        return self.cbam.ca(x)


def test_children_that_a_caller_may_call():
    model = CallsChild().double()
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    expected = model(x)
    report = replace_cbam(model)
    reason = "its sub-module ca is not the same mask as the new ca"
    assert report.skipped["cbam"] == reason and report.replaced.keys() == {"cbam.ca", "cbam.sa"}
    torch.testing.assert_close(model(x), expected)
    assert replace_cbam(nn.Sequential(Named())).replaced == {"0": "tutorial"}


class WithGates(Named):
    def forward(self, x, return_gates=False):
        mask = self.ca(x)
        return (x * mask, mask) if return_gates else super().forward(x)


def test_more_arguments():
    model = nn.Sequential(WithGates())
    report = replace_cbam(model)
    assert report.skipped == {"0": "its forward has more than one argument"}
    assert "0" not in report.replaced and len(model[0](torch.randn(1, 16, 4, 4), return_gates=True)) == 2


def shared_masks():
    ca = ChannelMask(16, 3)
    return nn.Sequential(Named(ca), Named(ca))


def held_outside(name):
    model = nn.Sequential(Named(), nn.Identity())
    model.extra = model[0].get_submodule(name)
    return model


@pytest.mark.parametrize(
    "model,skipped",
    [
        (shared_masks(), {"0": "ca", "1": "ca"}),
        (held_outside("ca"), {"0": "ca"}),
        (held_outside("ca.squeeze"), {"0": "ca.squeeze"}),
    ],
    ids=["two parents", "a mask outside", "a layer outside"],
)
def test_shared_layers_stay_shared(model, skipped):
    before = len([*model.parameters()])
    report = replace_cbam(model)
    reasons = {name: f"its sub-module {child} is shared with another module" for name, child in skipped.items()}
    assert report.skipped.items() >= reasons.items() and not report.replaced.keys() & skipped.keys()
    assert len([*model.parameters()]) == before
