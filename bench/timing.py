"""Timing, interleaved on a CPU and in CUDA graphs on a GPU; and the check that no bandwidth exceeds a copy's."""

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

# The tensors of x's size that each pass must move: forward x, y; backward x, dy, dx. A copy moves two.
MOVED = {"forward": 2, "backward": 3, "both": 5}


def keep_freed_memory() -> None:
    """Make the C library keep freed memory instead of returning it and taking new pages at the next call.

    The system clears a new page at its first access, which takes longer than these passes, and whether it must depends
    on memory freed before. Without glibc this does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


Calls = list[Callable[[], object]]
# On a GPU: calls per graph, consecutive steps, minimum seconds between two events, and number of measurements.
GRAPH_CALLS, STEPS, LEAST, REPEATS = 32, 10, 0.02, 5


def event() -> torch.cuda.Event:
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def between(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copies(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Copies for successive calls, three times the size of the GPU's L2 cache, so that none stays in it."""
    l2 = torch.cuda.get_device_properties(tensors[0].device).L2_cache_size
    return [tuple(t.clone() for t in tensors) for _ in range(max(2, -(-3 * l2 // tensors[0].nbytes)))]


def graph_seconds(calls: Calls) -> float:
    """The median time of a call on a GPU, without Python and without launches from the CPU.

    A CUDA graph has successive calls and is replayed often enough between two events to hide its launch latency. The
    result of a call is kept until as many later calls have returned, so results are also written to memory outside L2.
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
    """Like Round.medians, on a GPU: backward is both minus a forward for training."""
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
    """The time of a step, and the host's time for it, which on a CPU is the same.

    On a GPU there are STEPS consecutive steps between two events, after others, so the GPU is never idle unless it
    waits for the host in every step. The host's time starts from an idle GPU, whose queue is then never full.
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

    ``times[pass][name]`` are the seconds of all rounds.

    The order is random in every round: each call finds the caches as another call left them.

    forward runs without gradients. both is y = m(x); y.backward(dy) without existing gradients to add to. backward is
    its second part and always follows a new forward, as in training. "clone" is x.clone(), "copy" writes to a
    preallocated tensor.
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
        del y  # its deallocation is not timed, as in _both
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
    """The number of rounds within the budget in seconds, from the time of one round."""
    start = time.perf_counter()
    one_round()
    return min(max(least, round(budget / (time.perf_counter() - start))), 300)


def impossible(seconds: dict[str, dict[str, float]], x_bytes: int) -> str:
    """The bandwidths above the limit; empty if none.

    The limit is the faster of the two copies of the same x, timed in the same rounds. The copies use the same caches,
    so no allowance is needed.
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
