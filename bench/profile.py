"""A profile of a step on a GPU: its largest kernels, the gaps between them, and the host's activity."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import profiler

STEPS, LARGEST = 3, 10
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of events in a trace


def profile_step(step: Callable[[], object], trace: Path) -> dict:
    """The mean of STEPS steps; the profiler slows the host down, so gaps are an upper bound.

    Args:
        step: a step that has run before.
        trace: file for the trace, for chrome://tracing or Perfetto.
    """
    torch.cuda.synchronize()
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]) as profiled:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    profiled.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    kernels = [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in KERNELS]
    host = sorted(profiled.key_averages(), key=lambda e: -e.self_cpu_time_total)
    return summary(kernels, STEPS) | {
        "host ms": round(sum(e.self_cpu_time_total for e in host) / STEPS / 1e3, 3),
        "host": [
            {"name": e.key, "ms": round(e.self_cpu_time_total / STEPS / 1e3, 3), "calls": round(e.count / STEPS, 1)}
            for e in host[:LARGEST]
        ],
    }


def summary(kernels: list[tuple[str, float, float]], steps: int) -> dict:
    """Per step: busy and idle time of the GPU, the largest kernels, and the longest gaps of all steps.

    Args:
        kernels: (name, start, end) in microseconds.
    """
    kernels = sorted(kernels, key=lambda kernel: kernel[1])
    times, calls, gaps = Counter[str](), Counter[str](), []
    busy = latest = 0.0
    before = ""
    for name, start, end in kernels:
        times[name] += end - start
        calls[name] += 1
        if before and start > latest:
            gaps.append({"us": round(start - latest, 1), "after": before, "before": name})
        busy += max(0.0, end - max(start, latest))
        if end > latest:
            latest, before = end, name
    gaps.sort(key=lambda gap: -gap["us"])
    return {
        "kernels": round(len(kernels) / steps, 1),
        "busy ms": round(busy / steps / 1e3, 3),
        "idle ms": round(sum(gap["us"] for gap in gaps) / steps / 1e3, 3),
        "largest kernels": [
            {"name": name, "ms": round(us / steps / 1e3, 3), "calls": round(calls[name] / steps, 1)}
            for name, us in times.most_common(LARGEST)
        ],
        "longest gaps": gaps[:LARGEST],
    }
