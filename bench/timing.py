"""Interleaved timing of the passes, and the check that no bandwidth is above that of a copy."""

import ctypes
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# How often each pass must move a tensor of x's size: forward x, y; backward x, dy, dx. A copy moves two.
MOVED = {"forward": 2, "backward": 3, "both": 5}


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, instead of giving it back and taking new pages at the next call.

    The system clears a new page at its first touch, which takes longer than any of these passes spends on its bytes,
    and whether it has to depends on what was freed before. Without glibc nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


class CpuClock:
    mark = staticmethod(time.perf_counter)

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Events on the stream; a kernel shorter than its launch is thus timed as its launch."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3


CLOCKS = {"cpu": CpuClock, "cuda": CudaClock}


class Round:
    """One call of every implementation, first forward, then both; ``times[pass][name]`` holds the seconds of all.

    Their order is random and another in every round: each call finds the caches as one of the others left them.

    forward runs without gradients. both is y = m(x); y.backward(dy) with no gradient there to be added to, and
    backward is its second part: so it always follows a fresh forward, as it does in training. "clone" is x.clone(),
    "copy" writes to a tensor that is kept.
    """

    def __init__(self, modules: dict[str, nn.Module], x: Tensor, dy: Tensor):
        self.modules, self.x, self.dy = modules, x.detach().requires_grad_(), dy
        self.kept = torch.empty_like(x, requires_grad=False)
        self.clock = CLOCKS[x.device.type]()
        self.random = random.Random(0)
        self.times: dict[str, dict[str, list[float]]] = {p: defaultdict(list) for p in MOVED}

    def __call__(self) -> None:
        x, plain = self.x, self.x.detach()
        forwards = {name: lambda module=module: module(x) for name, module in self.modules.items()}
        forwards |= {"clone": plain.clone, "copy": lambda: self.kept.copy_(plain)}
        for name in self._shuffled(forwards):
            self._forward(name, forwards[name])
        for name in self._shuffled(self.modules):
            self._both(name, self.modules[name])

    def _shuffled(self, names: Iterable[str]) -> list[str]:
        return self.random.sample([*names], len([*names]))

    def _forward(self, name: str, call: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            start = self.clock.mark()
            y = call()
            end = self.clock.mark()
        del y  # freeing it is not timed, here as in _both
        self.times["forward"][name].append(self.clock.seconds(start, end))

    def _both(self, name: str, module: nn.Module) -> None:
        for leaf in (self.x, *module.parameters()):
            leaf.grad = None
        start = self.clock.mark()
        y = module(self.x)
        middle = self.clock.mark()
        y.backward(self.dy)
        end = self.clock.mark()
        self.times["backward"][name].append(self.clock.seconds(middle, end))
        self.times["both"][name].append(self.clock.seconds(start, end))

    def medians(self) -> dict[str, dict[str, float]]:
        return {p: {name: statistics.median(t) for name, t in by_name.items()} for p, by_name in self.times.items()}


def rounds_for(budget: float, least: int, one_round: Callable[[], None]) -> int:
    """How many rounds fit into the budget in seconds, by the time that one takes."""
    start = time.perf_counter()
    one_round()
    return min(max(least, round(budget / (time.perf_counter() - start))), 300)


def impossible(seconds: dict[str, dict[str, float]], x_bytes: int) -> str:
    """The bandwidths above the limit; empty if there are none.

    The limit is the faster of the two copies of the same x, timed in the same rounds. No allowance is needed for
    caches, since the copies have them too.
    """
    forward = seconds["forward"]
    limit = 2 * x_bytes / min(forward["clone"], forward["copy"])
    found = []
    for name, by_name in seconds.items():
        for implementation, t in by_name.items():
            rate = MOVED[name] * x_bytes / t
            if implementation not in ("clone", "copy") and rate > limit:
                found.append(f"{implementation} {name} {rate / 1e9:.1f} GB/s")
    return f"{', '.join(found)}: above the {limit / 1e9:.1f} GB/s of a copy" if found else ""
