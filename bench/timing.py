"""Timing, interleaved on a CPU and in CUDA graphs on a GPU; and the check that no bandwidth is above that of a copy."""

import ctypes
import math
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from cbam_fused.selftest import captured

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


Calls = list[Callable[[], object]]
# On a GPU: calls in a graph, steps in a row, and seconds between two events, at least; and how often that is measured.
GRAPH_CALLS, STEPS, LEAST, REPEATS = 32, 10, 0.02, 5


def event() -> torch.cuda.Event:
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def between(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copies(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Copies for calls to take in turn: three times what the GPU's L2 cache holds, so that it keeps none of them."""
    l2 = torch.cuda.get_device_properties(tensors[0].device).L2_cache_size
    return [tuple(t.clone() for t in tensors) for _ in range(max(2, -(-3 * l2 // tensors[0].nbytes)))]


def graph_seconds(calls: Calls) -> float:
    """The median time of a call on a GPU by itself: without Python, and without launches from the CPU.

    The calls follow each other in a CUDA graph, which is replayed often enough between two events that the latency of
    its launch does not count. What a call returns is kept until as many later ones have returned, so results too are
    written to memory that L2 does not hold.
    """
    repeated = calls * -(-GRAPH_CALLS // len(calls))

    def all_calls() -> list[object]:
        kept: deque[object] = deque(maxlen=len(calls))
        for call in repeated:
            kept.append(call())
        return list(kept)

    return replay_seconds(all_calls) / len(repeated)


def replay_seconds(call: Callable[[], object]) -> float:
    """The median time of a call in a CUDA graph."""
    graph, outputs = captured(call)

    def replays(count: int) -> float:
        start = event()
        for _ in range(count):
            graph.replay()
        return between(start, event())

    replays(1)  # the first one uploads the graph
    count = max(1, math.ceil(LEAST / replays(1)))
    return statistics.median(replays(count) for _ in range(REPEATS)) / count


def passes(cbam: Callable, pairs: list[tuple[Tensor, ...]], leaves: list[Tensor]) -> dict[str, Calls]:
    """Calls of cbam(x, *leaves) on each pair of x and dy: without gradients, for training, and with the backward."""
    inputs = [(x.detach().requires_grad_(), dy) for x, dy in pairs]

    def without_gradients(x: Tensor) -> Tensor:
        with torch.no_grad():
            return cbam(x, *leaves)

    def both(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(cbam(x, *leaves), [x, *leaves], dy)

    return {
        "forward": [partial(without_gradients, x) for x, _ in inputs],
        "training": [partial(cbam, x, *leaves) for x, _ in inputs],
        "both": [partial(both, x, dy) for x, dy in inputs],
    }


def layer_seconds(modules: dict[str, nn.Module], x: Tensor, dy: Tensor) -> dict[str, dict[str, float]]:
    """As Round.medians, on a GPU: backward is what both takes longer than a forward for training."""
    pairs = copies(x.detach(), dy)
    kept = [torch.empty_like(x) for x, _ in pairs]
    seconds: dict[str, dict[str, float]] = {name: {} for name in MOVED}
    seconds["forward"]["clone"] = graph_seconds([x.clone for x, _ in pairs])
    seconds["forward"]["copy"] = graph_seconds([partial(k.copy_, x) for k, (x, _) in zip(kept, pairs, strict=True)])
    for name, module in modules.items():
        leaves = list(module.parameters())
        calls = passes(lambda x, *_, module=module: module(x), pairs, leaves)
        found = {what: graph_seconds(c) for what, c in calls.items()}
        seconds["forward"][name], seconds["both"][name] = found["forward"], found["both"]
        seconds["backward"][name] = found["both"] - found["training"]
    return seconds


def step_seconds(step: Callable[[], object], device: str) -> tuple[float, float]:
    """The time that a step takes, and the time that the host takes for it, which on a CPU is the same.

    On a GPU STEPS of them follow each other between two events, behind others: none finds it idle, unless it has to
    wait for the host in every step. The host alone is timed from an idle GPU, whose queue is then never full.
    """
    start = time.perf_counter()
    if device == "cpu":
        step()
        return (time.perf_counter() - start,) * 2
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    host = time.perf_counter() - start
    step()
    first = event()
    for _ in range(STEPS):
        step()
    return between(first, event()) / STEPS, host


class Round:
    """On the CPU: one call of every implementation, first forward, then both.

    ``times[pass][name]`` holds the seconds of all.

    Their order is random and another in every round: each call finds the caches as one of the others left them.

    forward runs without gradients. both is y = m(x); y.backward(dy) with no gradient there to be added to, and
    backward is its second part: so it always follows a fresh forward, as it does in training. "clone" is x.clone(),
    "copy" writes to a tensor that is kept.
    """

    def __init__(self, modules: dict[str, nn.Module], x: Tensor, dy: Tensor):
        self.modules, self.x, self.dy = modules, x.detach().requires_grad_(), dy
        self.kept = torch.empty_like(x, requires_grad=False)
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
            start = time.perf_counter()
            y = call()
            end = time.perf_counter()
        del y  # freeing it is not timed, here as in _both
        self.times["forward"][name].append(end - start)

    def _both(self, name: str, module: nn.Module) -> None:
        for leaf in (self.x, *module.parameters()):
            leaf.grad = None
        start = time.perf_counter()
        y = module(self.x)
        middle = time.perf_counter()
        y.backward(self.dy)
        end = time.perf_counter()
        self.times["backward"][name].append(end - middle)
        self.times["both"][name].append(end - start)

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
