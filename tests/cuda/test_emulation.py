"""The emulated GPU reports what kernels do wrong, and lets right ones be."""

import pytest
import torch
from emulation import build, symbols
from emulation.driver import EmulationError, attempt

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)

N, BLOCK = 512, 128
X = torch.arange(float(N))


def blocks(x):
    return x.view(-1, BLOCK)


def block_sums(x):
    return blocks(x).sum(1, keepdim=True).expand(-1, BLOCK).flatten()


def next_element(x):
    return torch.cat([x[1:], x.new_zeros(1)])


def cluster_sums(x):
    pairs = x.view(-1, 2, BLOCK)
    return (pairs + pairs.flip(1)).flatten()


# What each toy computes, and the error of the one that is wrong: its kind, and a word of the message.
TOYS = {
    "block_sums": (block_sums, "race|unwritten", "toys.cu"),
    "block_sums_twice": (block_sums, "race", "toys.cu"),
    "warp_neighbours": (lambda x: x.view(-1, 2).flip(1).flatten(), "race|unwritten", "toys.cu"),
    "next_element": (next_element, "out of bounds", "of x"),
    "next_in_shared": (
        lambda x: torch.cat([next_element(block) for block in blocks(x)]),
        "out of bounds",
        "shared memory",
    ),
    "copy": (lambda x: x, "unwritten", "byte 2044 of the 2048 of y"),
    "cluster_sums": (cluster_sums, "race|unwritten", "shared memory"),
    "cluster_ends": (cluster_sums, "block has ended", "toys.cu"),
    "cluster_begins": (cluster_sums, "block not started", "toys.cu"),
    "branches": (lambda x: x, "divergent barrier", "toys.cu"),
    "early_exit": (lambda x: x, "divergent barrier", "has ended"),
    "vectors": (lambda x: x, "misaligned", "device.cuh"),
    "last_block": (lambda x: x, "race", "byte 0 of the 2048 of y"),
    "begins_early": (lambda x: x, "race", "the launch before this one"),
    "follows_nothing": (lambda x: x, "race", "has not waited for the launch before this one"),
    "overwritten": (lambda x: x, "write to an argument", "of x"),
}


@pytest.fixture(scope="module")
def checked():
    return build.load("toys", "checked")


@pytest.fixture(scope="module")
def plain():
    return build.load("toys", "plain")


def run(toys, name, wrong, seed):
    y = torch.empty(N)
    toys.remove_buffers()
    toys.clear_traffic()
    toys.set_seed(seed)
    x_address = toys.add_buffer("x", X.nbytes, X.data_ptr(), False)
    y_address = toys.add_buffer("y", y.nbytes, 0, True)
    assert attempt(toys, getattr(toys, name), x_address, y_address, N, wrong) == 0
    attempt(toys, toys.check_written, y_address)
    toys.copy_buffer(y_address, y.nbytes, y.data_ptr())
    return y


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TOYS)
def test_right_kernels(plain, checked, name, seed):
    expected = TOYS[name][0](X)
    assert torch.equal(run(plain, name, False, seed), expected)
    assert torch.equal(run(checked, name, False, seed), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TOYS)
def test_wrong_kernels(checked, name, seed):
    _, kinds, words = TOYS[name]
    with pytest.raises(EmulationError) as error:
        run(checked, name, True, seed)
    assert error.value.kind in kinds.split("|")
    assert words in str(error.value)


# Codes of cudaError_t.
@pytest.mark.parametrize(("name", "code"), [("large_shared", 1), ("large_cluster", 912), ("odd_grid", 912)])
def test_launches_that_the_runtime_refuses(plain, name, code):
    assert torch.equal(run(plain, name, False, 0), X)
    assert getattr(plain, name)(0, 0, N, True) == code


@pytest.mark.parametrize("name", ("branches", "early_exit"))
def test_divergent_barriers_need_no_checks(plain, name):
    with pytest.raises(EmulationError, match="divergent barrier"):
        run(plain, name, True, 0)


def test_traffic_of_vectors(checked):
    run(checked, "vectors", False, 0)
    (launch,) = checked.traffic()
    requests = N // 4 // 32
    expected = {"x": (4 * N, 0, 4 * N, requests, 4 * N // 32), "y": (0, 4 * N, 4 * N, requests, 4 * N // 32)}
    assert launch["buffers"] == expected
    assert symbols.function_name(checked.__file__, launch["kernel"]) == "vectors_kernel"


@pytest.mark.parametrize("strided", (False, True))
def test_traffic_of_strides(checked, strided):
    """Elements far from each other take a sector each, and are served one after another if in the same bank."""
    run(checked, "strided", strided, 0)
    (launch,) = checked.traffic()
    requests = N // 32
    assert launch["buffers"]["x"] == (4 * N, 0, 4 * N, requests, requests * (32 if strided else 4))
    assert launch["shared_requests"] == 2 * requests
    assert launch["bank_conflicts"] == (2 * requests * 31 if strided else 0)
