"""torch.utils.flop_counter counts the operators as the plain module."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cbam_fused import CBAM, VARIANTS, ChannelAttention, SpatialAttention, reference
from cbam_fused.ops import registry


def count(module: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Operations of a forward and of its backward."""
    with FlopCounterMode(display=False) as forward:
        y = module(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def twins(*args, **options) -> tuple[nn.Module, nn.Module]:
    return CBAM(*args, **options), reference.CBAM(*args, **options)


@pytest.mark.parametrize("x_learns", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(variant, training, x_learns):
    fused, plain = twins(32, variant=variant)
    x = torch.randn(2, 32, 9, 7, requires_grad=x_learns)
    expected = count(plain.train(training), x)
    assert count(fused.train(training), x) == expected and all(expected)


SWITCHES = {
    "one gate": {"spatial": False},
    "the other": {"channel": False},
    "even ties": {"ties": "even"},
    "one map": {"maps": "mean"},
    "biases": {"bias": True, "spatial_bias": True},
    "norm": {"norm": True},
    "norm behind one map": {"norm": True, "maps": "mean"},
    "wide": {"width": 48, "residual": True},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_switches_and_frozen_parts(switches):
    fused, plain = (m.eval() for m in twins(16, 4, 5, **switches))
    for module in (fused, plain):
        if module.sa is not None and module.sa.bn is not None:
            module.sa.bn.requires_grad_(False)  # folded into the weight, it would need that one's gradient
    names = [n for n, p in plain.named_parameters() if p.requires_grad]
    x = torch.randn(3, 16, 6, 5)
    for frozen in ([], names[:1], names[1:], names[:2]):
        if len(frozen) == len(names):
            continue
        for module in (fused, plain):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in names and name not in frozen)
        for learns in (True, False):
            assert count(fused, x.requires_grad_(learns)) == count(plain, x), (frozen, learns)


def test_the_figures():
    """2 operations per weight: MLP for two pools, convolution for each pixel; each backward is twice that."""
    N, C, R, k, H, W = 2, 32, 2, 7, 8, 8
    forward = 2 * 2 * N * 2 * R * C + 2 * N * H * W * 2 * k * k
    assert count(CBAM(C), torch.randn(N, C, H, W, requires_grad=True)) == (forward, 2 * forward)


@pytest.mark.parametrize("mask", ["ca", "sa"])
def test_a_mask_alone(mask):
    ours = ChannelAttention(16) if mask == "ca" else SpatialAttention()
    plain = reference.ChannelAttention(16) if mask == "ca" else reference.SpatialAttention()
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    assert count(ours, x) == count(plain, x)


def test_inference_and_halves():
    fused, plain = twins(16)
    x = torch.randn(2, 16, 6, 6)
    found = []
    for module in (fused, plain):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            module(x)
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0
    assert count(fused.half(), x.half()) == count(plain.half(), x.half())


@pytest.mark.parametrize("options", [{}, {"norm": True}], ids=["forward", "batch norm"])
def test_an_exported_program(options):
    fused, plain = twins(16, **options)
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    program = torch.export.export(fused, (x,)).module()
    assert count(program, x) == count(plain, x)


def test_exported_masks():
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    program = torch.export.export(ChannelAttention(16), (x,)).module()
    assert count(program, x) == count(reference.ChannelAttention(16), x)


def test_plain_operators_count_once(monkeypatch):
    monkeypatch.setattr("cbam_fused.routing.wanted", "reference")
    fused, plain = twins(16)
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    assert count(fused, x) == count(plain, x)


def test_triton_operators(checker):
    fused, plain = twins(8, 4, 3, norm=True)
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert registry.operators["triton"].forward(x, None, None, torch.zeros(1, 2, 3, 3), *(None,) * 4, False, 0)
    for training in (True, False):
        ours = count(fused.train(training), x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cbam_fused.routing.wanted", "reference")
            assert ours == count(plain.train(training), x)


@pytest.mark.parametrize("first", ["cbam_fused", "torch.utils.flop_counter"])
def test_the_order_of_imports(first):
    second = {"cbam_fused": "torch.utils.flop_counter"}.get(first, "cbam_fused")
    code = f"""
import sys, torch
finders = len(sys.meta_path)
import {first}
assert "triton" not in sys.modules or "{first}" != "cbam_fused", "triton is not imported by us"
import {second}
import cbam_fused, torch.utils.flop_counter as counter
assert len(sys.meta_path) == finders
assert torch.ops.cbam_fused.triton_forward in counter.flop_registry
with counter.FlopCounterMode(display=False) as found:
    cbam_fused.CBAM(16)(torch.ones(1, 16, 4, 4))
assert found.get_total_flops() == 2 * 2 * 2 * 16 + 2 * 16 * 98, found.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
