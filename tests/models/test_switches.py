"""Single switches: each against its formula, and wrong ones."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from public import filled, images, run

from cbam_fused import CBAM, ChannelAttention, SpatialAttention, reference
from cbam_fused.variants.config import Switches


def formula(x, w1, w2, b1, b2, act, pools, combine, place, gate):
    def mlp(v):
        return act(v @ w1.flatten(1).T + b1) @ w2.flatten(1).T + b2

    flat = x.flatten(2)
    values = {
        "avg": flat.mean(2),
        "max": flat.max(2).values,
        "lp": flat.square().sum(2).sqrt(),
        "lse": flat.exp().sum(2).log(),
    }
    values = [values[p] for p in pools]
    if combine == "mean":
        return gate(mlp(sum(values) / len(values)))
    return sum(gate(mlp(v)) for v in values) if place == "before_sum" else gate(sum(mlp(v) for v in values))


@pytest.mark.parametrize(
    "switches",
    [
        {"act": "leaky_relu"},
        {"act": "gelu"},
        {"pools": ["avg", "max", "lp", "lse"]},
        {"pools": ("max",)},
        {"gate_place": "before_sum"},
        {"channel_gate": "hard_sigmoid", "combine": "mean"},
    ],
    ids=str,
)
def test_switches_of_the_channel_gate(switches):
    module = filled(ChannelAttention(8, 2, bias=True, **switches))
    s = module.switches
    act = {
        "leaky_relu": lambda v: torch.where(v > 0, v, 0.01 * v),
        "gelu": lambda v: v * (1 + torch.erf(v / 2**0.5)) / 2,
    }
    gate = {"sigmoid": torch.sigmoid, "hard_sigmoid": lambda v: (v / 6 + 0.5).clamp(0, 1)}[s.channel_gate]
    x = images(8, tied=False)
    expected = formula(x, *module.weights(), act.get(s.act, torch.relu), s.pools, s.combine, s.gate_place, gate)
    torch.testing.assert_close(module(x), expected[:, :, None, None])
    assert module.backend_for(x).name == ("reference" if "lp" in s.pools else "cpu")


def test_hard_sigmoid_of_the_spatial_gate():
    module = filled(SpatialAttention(3, spatial_gate="hard_sigmoid"))
    x = images(4, tied=False)
    logits = F.conv2d(torch.stack([x.mean(1), x.max(1).values], 1), module.conv1.weight, padding=1)
    torch.testing.assert_close(module(x), (logits / 6 + 0.5).clamp(0, 1))


def test_light_spatial_gate_through_both_maps():
    """The convolution over (mean + max) / 2 equals one over both with half the weight."""
    module = filled(CBAM(8, 2, maps="mean"))
    plain = filled(reference.CBAM(8, 2, maps="mean"))
    plain.load_state_dict(module.state_dict())
    x = images(8, tied=True)
    assert module.backend_for(x).name == "cpu"
    for got, expected in zip(run(module, x), run(plain, x), strict=True):
        torch.testing.assert_close(got, expected)


def test_even_ties_share_the_gradient():
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    even = filled(CBAM(1, 1, ties="even", spatial=False, pools=("max",), bias=True))
    even.ca.fc1.bias.data.fill_(1.0)
    (dx,) = torch.autograd.grad(even.ca(x).sum(), x)
    assert dx.abs().min() > 0 and torch.equal(dx, dx.mean().expand_as(dx))


def test_one_gate_alone():
    x = images(8, tied=True)
    channel, spatial = filled(CBAM(8, 2, spatial=False)), filled(CBAM(8, channel=False))
    assert [*channel.state_dict()] == ["ca.fc1.weight", "ca.fc2.weight"] and [*spatial.state_dict()] == [
        "sa.conv1.weight"
    ]
    torch.testing.assert_close(channel(x), channel.ca(x) * x)
    torch.testing.assert_close(spatial(x), spatial.sa(x) * x)


WRONG = [
    (
        {"variant": "offical"},
        ValueError,
        "variant must be a name in VARIANTS, got 'offical'; the nearest names are official",
    ),
    (
        {"variant": ["official"]},
        ValueError,
        r"variant must be a name in VARIANTS, got \['official'\]; the nearest names are official",
    ),
    ({"variant": "?"}, ValueError, r"variant must be a name in VARIANTS, got '\?'; there are tutorial, luuuyi"),
    ({"spatal_bias": True}, TypeError, "CBAM has no argument 'spatal_bias'; the nearest names are spatial_bias"),
    ({"act": "selu"}, ValueError, "act must be one of relu, leaky_relu, silu, gelu, got 'selu'"),
    (
        {"pools": ("avg", "avg")},
        ValueError,
        r"pools must name some of avg, max, lp, lse, each at most once, got \('avg', ",
    ),
    ({"pools": "max"}, ValueError, "pools must name some of avg, max, lp, lse, each at most once, got 'max'"),
    ({"width": 0}, ValueError, "width must be at least 1, got 0"),
    ({"width": "half"}, ValueError, "width must be one of floor, .*, single or an integer, got 'half'"),
    ({"norm": 1}, ValueError, "norm must be True or False, got 1"),
    ({"norm_momentum": "0.1"}, ValueError, "norm_momentum must be a number, got '0.1'"),
    ({"channel": False, "spatial": False}, ValueError, "channel or spatial must be True, got False for both"),
    ({"spatial_order": "max_mean"}, ValueError, "spatial_order must be mean_max for variant 'tutorial'"),
]


@pytest.mark.parametrize("arguments,kind,message", WRONG, ids=[str(w[0]) for w in WRONG])
@pytest.mark.parametrize("cls", [CBAM, reference.CBAM])
def test_wrong_use(arguments, kind, message, cls):
    with pytest.raises(kind, match=message):
        cls(64, **arguments)


def test_every_switch_is_described():
    for field in dataclasses.fields(Switches):
        assert field.name in Switches.__doc__, field.name
