"""replace_cbam leaves modules alone that it cannot prove equal, and reports the reason."""

import random

import family
import pytest
import torch
from torch import nn

from cbam_fused import CBAM, replace_cbam


@pytest.mark.parametrize("kind", family.ODD_CHANNELS, ids=lambda kind: kind.__name__)
def test_masks_that_are_something_else_at_times(kind):
    block = family.Caller(kind(), family.Spatial())
    mask = block.ca
    report = replace_cbam(nn.Sequential(block))
    if kind.__name__ in ("GELUChannel", "SiLUChannel"):  # known, without such a variant
        assert report.replaced.keys() <= {"0.ca", "0.sa"}
        return
    assert block.ca is mask and "0.ca" not in report.replaced and report.fused == {}


@pytest.mark.parametrize("kind", family.ODD_CALLERS, ids=lambda kind: kind.__name__)
def test_callers_that_do_something_else_at_times(kind):
    block = kind(family.Channel(), family.Spatial())
    report = replace_cbam(nn.Sequential(block))
    assert report.replaced.keys() == {"0.ca", "0.sa"}
    if report.fused:  # attributes are compared at each call; the other callers have no effects
        assert kind.__name__ in ("scheduled", "skipping", "again", "forward")
        assert replace_cbam(nn.Sequential(block)).unfused == {}
    else:
        assert type(block) is kind and report.unfused.keys() == {"0"} and report.unfused["0"]


def test_random_blocks_stay_random():
    """A user's report: 9 of 12 such blocks were fused, and then never dropped."""
    block = family.caller("Dropping", family.by_python)(family.Channel(), family.Spatial())
    report = replace_cbam(nn.Sequential(block))
    assert report.unfused == {"0": "its forward uses random.random, which is not a known function or module class"}
    random.seed(0)
    x = torch.randn(1, family.C, 4, 4)
    dropped = [torch.equal(block.train()(x), x) for _ in range(200)]
    assert 30 < sum(dropped) < 90 and not any(torch.equal(block.eval()(x), x) for _ in range(20))


def test_attributes_that_change_after_fusing():
    """The traced forward is used only for the attributes at tracing."""
    block = family.Caller(family.Channel(), family.Spatial())
    model = nn.Sequential(block)
    assert replace_cbam(model).fused == {"0": [("ca", "sa")]}
    x = torch.randn(2, family.C, 5, 4)
    before = block(x)
    block.downsample = nn.Hardtanh()
    torch.testing.assert_close(block(x), before - x + x.clamp(-1, 1))
    block.downsample = None
    assert torch.equal(block(x), before)
    block.sa = nn.Identity()
    assert not torch.allclose(block(x), before)


@pytest.mark.parametrize("name", ["held", "held in a list", "compiled ca", "forward of the block"])
def test_what_others_hold(name):
    """They would keep the old module and its parameters."""
    block = family.Whole(family.Channel(), family.Spatial())
    family.ATTACHED[name](block)
    report = replace_cbam(nn.Sequential(block))
    assert "0" not in report.replaced and report.skipped["0"]


def test_a_relu6_is_no_relu():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.ca, self.sa = family.activation(nn.ReLU6)(), family.Spatial()

        def forward(self, x):
            x = self.ca(x) * x
            return self.sa(x) * x

    model = nn.Sequential(Named())
    report = replace_cbam(model)
    assert not isinstance(model[0], CBAM) and report.replaced.keys() == {"0.sa"}


class Clipped(nn.Module):
    """Beyond all tested numbers."""

    def forward(self, x):
        return x.clamp(0, 1e30)


def test_a_clamp_that_no_number_reaches():
    mask = family.Channel()
    mask.relu = Clipped()
    report = replace_cbam(nn.Sequential(family.Caller(mask, family.Spatial())))
    assert report.replaced.keys() == {"0.sa"}


class ScaledChannelAttention(family.Channel):
    def forward(self, x):
        return 0.999999 * super().forward(x)


class ChannelAttentionScaledInTraining(family.Channel):
    def forward(self, x):
        return super().forward(x) * (1 - 1e-6 * self.training)


ALMOST = [
    (ScaledChannelAttention, "in eval mode it is no known function"),
    (ChannelAttentionScaledInTraining, "in training mode it is no known function, in eval mode it is one"),
]


@pytest.mark.parametrize("kind,reason", ALMOST)
def test_almost_the_same_function(kind, reason):
    """All operators are those of CBAMs: only the values differ."""
    report = replace_cbam(nn.Sequential(family.Caller(kind(), family.Spatial())))
    assert report.replaced.keys() == {"0.sa"} and report.skipped == {"0.ca": reason}
