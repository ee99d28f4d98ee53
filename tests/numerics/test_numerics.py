"""The numerical behaviour that docs/guide/compatibility.md promises, for every module in every mode."""

import warnings

import pytest
import torch

from cbam_fused import CBAM, functional
from cbam_fused.ops import registry

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])

# Every set of operators that the modules use: forward and backward, those around BatchNorm, even ties, the masks.
MODULES = {
    "tutorial": lambda: CBAM(48),
    "BatchNorm by the batch": lambda: CBAM(48, variant="official"),
    "folded BatchNorm": lambda: CBAM(48, variant="official").eval(),
    "even ties": lambda: CBAM(48, variant="timm"),
    "channel gate": lambda: CBAM(48, spatial=False),
    "spatial gate": lambda: CBAM(48, channel=False),
    "channel mask": lambda: CBAM(48).ca,
    "spatial mask": lambda: CBAM(48).sa,
}
modules = pytest.mark.parametrize("name", MODULES)


def run(name, layout, dtype=torch.float32, double_backward=False):
    """y and every gradient of a new module."""
    torch.manual_seed(0)
    module = MODULES[name]()
    x = torch.randn(7, 48, 9, 11).relu().to(dtype).to(memory_format=layout).requires_grad_()
    y = module(x)
    leaves = [x, *module.parameters()]
    grads = torch.autograd.grad(y.float().square().sum(), leaves, create_graph=double_backward)
    if double_backward:
        grads += torch.autograd.grad(grads[0].square().sum(), leaves)
    return y, *grads


@LAYOUTS
@modules
def test_bitwise_the_same_for_any_number_of_threads(name, layout):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8, before):
            torch.set_num_threads(threads)
            results.append(run(name, layout))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@LAYOUTS
@modules
def test_deterministic_mode_neither_warns_nor_fails(name, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        first, second = (run(name, layout, double_backward=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_half_types_are_float32(dtype, layout):
    """A bfloat16 sum of ones stops at 256, a float16 one at 2048; the saved means and sums must not."""
    N, C, H, W = 1, 4096, 64, 65
    x = torch.ones(N, C, H, W, dtype=dtype).to(memory_format=layout)
    w1, w2 = torch.zeros(1, C), torch.zeros(C, 1)
    ws = torch.zeros(1, 2, 1, 1)
    _, saved, _ = registry.operators["cpu"].forward(x, w1, w2, ws, None, None, None, None, False, 0)
    assert saved.dtype == torch.float32
    mean, maps = saved[:, :C], saved[:, -3 * H * W : -2 * H * W]
    assert (mean == 1).all(), "means over 4160 pixels"
    assert (maps == 0.5).all(), "means over 4096 channels of g x, and g is 1 / 2"


def test_parameter_gradients_of_half_types_are_summed_in_float32():
    """Over 4096 images with the same gradient; in bfloat16 the sum would stop at 256 of them."""
    x = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    params = [torch.randn(s, generator=torch.Generator().manual_seed(1)) for s in ((2, 8), (8, 2), (1, 2, 3, 3))]
    grads = []
    for count in (1, 4096):
        leaves = [p.clone().requires_grad_() for p in params]
        functional.cbam(x.expand(count, -1, -1, -1), *leaves).float().sum().backward()
        grads.append([p.grad for p in leaves])
    for one, many in zip(*grads, strict=True):
        torch.testing.assert_close(many, 4096 * one, rtol=1e-4, atol=1e-3)
