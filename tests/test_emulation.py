"""The emulated GPU reports what kernels do wrong, and lets right ones be."""

import pytest
import torch
from emulation import build

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)

SEEDS = range(4)


@pytest.fixture(scope="module")
def toys():
    return build.load("toys", "plain")


@pytest.mark.parametrize("seed", SEEDS)
def test_sums(toys, seed):
    x, y = torch.arange(512.0), torch.empty(512)
    toys.remove_buffers()
    addresses = toys.add_buffer("x", x.nbytes, x.data_ptr(), False), toys.add_buffer("y", y.nbytes, 0, True)
    toys.set_seed(seed)
    assert toys.block_sums(*addresses, 512, False) == 0
    toys.copy_buffer(addresses[1], y.nbytes, y.data_ptr())
    assert torch.equal(y.view(4, 128), x.view(4, 128).sum(1, keepdim=True).expand(4, 128))
