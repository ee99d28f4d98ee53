"""Blocks that meet at counters (csrc/cuda/common/counters.cuh), emulated: right kernels run with any number of blocks
and in any order of threads, and each error is reported."""

import pytest
import torch
from emulation import build
from emulation.driver import EmulationError, attempt

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)
seeds = pytest.mark.parametrize("seed", range(4))
modes = pytest.mark.parametrize("mode", ["plain", "checked"])

PARTS, SIZE = 5, 256
X = torch.arange(float(PARTS * SIZE)) % 61
BLOCKS = (1, 2, 3, 7, 16)


class Toys:
    """The toys of one mode, their buffers, and what the last launch left in them."""

    def __init__(self, mode: str, seed: int, resident: int = 0):
        self.module = build.load("toys", mode)
        self.module.remove_buffers()
        self.module.clear_traffic()
        self.module.set_seed(seed)
        self.module.set_resident(resident)
        self.x = self.module.add_buffer("x", X.nbytes, X.data_ptr(), False)
        self.copy, self.y = (self.module.add_buffer(name, X.nbytes, 0, True) for name in ("copy", "y"))
        self.counters = self.module.add_buffer("counters", 4 * (PARTS + 1), 0, True)

    def run(self, name: str, *arguments) -> torch.Tensor:
        try:
            assert attempt(self.module, getattr(self.module, name), *arguments) == 0
        finally:
            self.module.set_resident(0)
        attempt(self.module, self.module.check_written, self.y)
        y = torch.empty_like(X)
        self.module.copy_buffer(self.y, y.nbytes, y.data_ptr())
        return y

    def gather(self, blocks: int, fault: str = "none") -> torch.Tensor:
        fault = getattr(self.module.Fault, fault)
        return self.run("gather", self.x, self.copy, self.y, self.counters, PARTS, blocks, fault)

    def deal(self, blocks: int, wrong: bool = False) -> torch.Tensor:
        return self.run("deal", self.x, self.y, self.counters, PARTS, blocks, wrong)

    def chain(self, blocks: int) -> torch.Tensor:
        return self.run("chain", self.x, self.y, self.counters, PARTS, blocks)


def gathered() -> torch.Tensor:
    return X.view(PARTS, SIZE).sum(0).roll(-1).repeat(PARTS)


def chained() -> torch.Tensor:
    y = X.view(PARTS, SIZE).clone()
    for t in range(1, PARTS):
        y[t] += y[t - 1].roll(-1) + (y[t - 2] if t > 1 else 0)
    return y.flatten()


@pytest.mark.parametrize("resident", (0, 1, 2))
@pytest.mark.parametrize("blocks", BLOCKS)
@modes
@seeds
def test_right_kernels(seed, mode, blocks, resident):
    """Also if the blocks are not all alive together."""
    assert torch.equal(Toys(mode, seed, resident).deal(blocks), X)
    assert torch.equal(Toys(mode, seed, resident).gather(blocks), gathered())
    assert torch.equal(Toys(mode, seed, resident).chain(blocks), chained())


@seeds
def test_counters_at_the_end(seed):
    """Each block takes a ticket more, which tells it that there are no more items."""
    toys = Toys("checked", seed)
    toys.gather(3)
    (launch,) = toys.module.traffic()
    assert launch["counters"] == {("counters", 0): 2 * PARTS + 3, ("counters", 1): PARTS}
    assert "counters" not in launch["buffers"]


# What is reported of each error, if several blocks are at work: its kind, and a word of the message.
FAULTS = {
    "no_arrive": ("deadlock", "word 1 of counters, which is 4"),
    "no_wait": ("race|unwritten", "of copy"),
    "low_count": ("race|unwritten", "of copy"),
    "high_count": ("deadlock", "word 1 of counters, which is 5"),
    "early_arrive": ("race|unwritten", "of copy"),
    "no_memset": ("unwritten", "of counters"),
    "take_without_barrier": ("race|unwritten", "shared memory"),
    "wait_without_fence": ("race|unwritten", "of copy"),
    "wait_without_barrier": ("race|unwritten", "of copy"),
    "arrive_without_barrier": ("race|unwritten", "of copy"),
    "arrive_without_fence": ("race|unwritten", "of copy"),
    "plain_arrive": ("race", "of counters"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("blocks", BLOCKS[1:])
@seeds
def test_wrong_kernels(seed, blocks, fault):
    kinds, words = FAULTS[fault]
    with pytest.raises(EmulationError) as error:
        Toys("checked", seed).gather(blocks, fault)
    assert error.value.kind in kinds.split("|")
    assert words in str(error.value) and ".cu" in str(error.value)


@pytest.mark.parametrize("blocks", BLOCKS)
@seeds
def test_a_ticket_that_is_overwritten(seed, blocks):
    with pytest.raises(EmulationError, match="variables in shared memory") as error:
        Toys("checked", seed).deal(blocks, wrong=True)
    assert error.value.kind == "race"


@modes
@seeds
def test_an_item_that_needs_a_higher_ticket_deadlocks(seed, mode):
    """With fewer blocks than items that wait; with more of them there is always one that goes on."""
    for blocks, resident in ((1, 0), (2, 0), (3, 0), (PARTS, 0), (16, PARTS)):
        with pytest.raises(EmulationError, match="word 1 of counters, which is 0") as error:
            Toys(mode, seed, resident).gather(blocks, "wrong_order")
        assert error.value.kind == "deadlock"
    assert torch.equal(Toys(mode, seed).gather(16, "wrong_order"), gathered())


@modes
def test_blocks_that_wait_for_others_to_start(mode):
    """Right if all are alive together, which nothing promises; seed 1 starts a later one first."""

    def run(seed: int, resident: int) -> torch.Tensor:
        toys = Toys(mode, seed, resident)
        return toys.run("neighbours", toys.x, toys.y, toys.counters, PARTS)

    sums = X.view(PARTS, SIZE).cumsum(0).flatten()
    assert torch.equal(run(0, 0), sums)
    assert torch.equal(run(1, 0), sums)
    with pytest.raises(EmulationError, match="deadlock"):
        run(1, 1)


@seeds
def test_counters_are_not_read_as_other_memory(seed):
    toys = Toys("checked", seed)
    with pytest.raises(EmulationError, match="of counters") as error:
        toys.run("reads_counter", toys.y, toys.counters, PARTS)
    assert error.value.kind == "race"


def test_many_blocks_cannot_meet():
    with pytest.raises(EmulationError, match="more than 16"):
        Toys("plain", 0).gather(17)
