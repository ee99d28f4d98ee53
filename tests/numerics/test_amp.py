"""Mixed precision: autocast, parameters of another dtype than x, the range of float16, GradScaler."""

import copy

import pytest
import torch
from torch import nn

from cbam_fused import CBAM, functional, reference

HALVES = (torch.bfloat16, torch.float16)
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])


def feature_map(dtype, device="cpu"):
    return torch.randn(2, 32, 7, 9, generator=torch.Generator().manual_seed(0)).relu().to(device, dtype)


def run(module, x):
    """y and all gradients."""
    x = x.detach().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()])


@devices
@pytest.mark.parametrize("variant", ["tutorial", "official"])
@pytest.mark.parametrize("region", HALVES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype, region, variant, device):
    """x keeps its dtype, and sums are float32 with and without autocast."""
    torch.manual_seed(0)
    module, x = CBAM(32, variant=variant).to(device), feature_map(dtype, device)
    expected = run(copy.deepcopy(module), x)
    with torch.autocast(device, region):
        got = run(module, x)
        assert module.ca(x).dtype == module.sa(x).dtype == dtype
    assert [t.dtype for t in got] == [dtype, dtype, *(p.dtype for p in module.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("variant", ["tutorial", "official"])
def test_autocast_changes_no_differentiable_gradient(variant):
    torch.manual_seed(0)
    module, x = CBAM(32, variant=variant), feature_map(torch.float32).requires_grad_()
    loss = module(x).square().sum()
    expected = torch.autograd.grad(loss, x, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_type_of_the_result_is_that_of_plain_operators(dtype):
    with torch.autocast("cpu", torch.bfloat16):
        y, plain = (cls(32)(feature_map(dtype)) for cls in (CBAM, reference.CBAM))
    assert y.dtype == plain.dtype == dtype


def test_the_type_of_the_result_in_the_other_half_type():
    with torch.autocast("cpu", torch.bfloat16):
        y, plain = (cls(32)(feature_map(torch.float16)) for cls in (CBAM, reference.CBAM))
    assert (y.dtype, plain.dtype) == (torch.float16, torch.float32)


def test_autocast_in_compiled_code():
    torch.compiler.reset()
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), CBAM(32))
    x = torch.randn(2, 3, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = (run(f, x) for f in (torch.compile(network, backend="aot_eager", fullgraph=True), network))
    assert [t.dtype for t in got] == [t.dtype for t in expected] and got[0].dtype == torch.bfloat16
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@devices
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_the_largest_float16(layout, device):
    """Sums over pixels and channels go far beyond 65504, results do not; dy is the smallest number, times 1024."""
    x = torch.full((2, 16, 20, 20), 65504.0, dtype=torch.float16, device=device).to(memory_format=layout)
    x.requires_grad_()
    w = torch.full((16, 1), 1e-6, device=device)
    y = functional.cbam(x, w.T, w, torch.full((1, 2, 7, 7), 1e-9, device=device))
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, 2**-14))
    # Logits of the gates are nearly 0.
    torch.testing.assert_close(y, x / 4, rtol=0.05, atol=0)
    assert dx.isfinite().all() and (dx > 0).all()


def train(module, steps=12, scale=2.0**24):
    """The scales after each step, the losses, and whether the first step moved any parameter."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), module, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(32, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    x, labels = torch.randn(8, 3, 12, 12), torch.arange(8) % 4
    before = [p.detach().clone() for p in network.parameters()]
    scales, losses, moved = [], [], []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(network(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        losses.append(loss.item())
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)))
    return scales, losses, moved


def test_grad_scaler_skips_what_overflows_and_then_trains():
    torch.manual_seed(0)
    plain = reference.CBAM(32)
    fused = CBAM(32)
    fused.load_state_dict(plain.state_dict())
    scales, losses, moved = train(fused)
    assert scales[0] == 2**23 and not moved[0], "the first step overflows and is left out"
    assert scales[-1] == scales[-2] and losses[-1] < losses[0]
    plain_scales, plain_losses, plain_moved = train(plain)
    assert (scales, moved) == (plain_scales, plain_moved)
    assert losses == pytest.approx(plain_losses, rel=1e-2)
