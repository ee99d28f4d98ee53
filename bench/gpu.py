"""What docs/results/h100.json holds, measured on the GPU that is there: PYTHONPATH=tests python -m bench.gpu FILE

The operators by themselves in CUDA graphs, without Python and without launches from the CPU, beside plain PyTorch,
torch.compile and a copy, each map after the gate that bench/ has; then a training step of a network.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from cbam_fused import reference
from cbam_fused.ops import registry
from cbam_fused.selftest import MAPS

from . import cases, gate, networks
from .timing import CLOCKS

BATCH = 64
KINDS = [("bfloat16", "nchw"), ("bfloat16", "nhwc"), ("float32", "nchw")]
# Tensors that calls take in turn, so that L2 does not keep them from one call to the next: bytes of all, most of them.
SPREAD, MOST = 120_000_000, 8
REPLAYS, ROUNDS = 12, 12
HOW = (
    f"median of {REPLAYS} replays of a CUDA graph that calls the operator on up to {MOST} tensors in turn, "
    f"{SPREAD // 10**6} MB of them where they are large enough; weights in float32 for the operators, in x's type for "
    "plain PyTorch"
)
Calls = list[Callable[[], object]]


def graph_microseconds(calls: Calls) -> float:
    """The median time of a call, of those in a CUDA graph of all of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls * 2:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph, clock = torch.cuda.CUDAGraph(), CLOCKS["cuda"]()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    del kept
    times = []
    for _ in range(REPLAYS):
        start = clock.mark()
        graph.replay()
        times.append(clock.seconds(start, clock.mark()) * 1e6 / len(calls))
    return round(statistics.median(times), 2)


def operators(
    shape: tuple[int, int, int, int], dtype: str, layout: str, device: str, microseconds: Callable[[Calls], float]
) -> dict:
    """One row of docs/results/h100.json. Ours: forward, backward; plain PyTorch: forward, and both together."""
    problem = cases.Case(device, shape, dtype, layout).problem()
    weights = [problem.inputs[name].detach().to(device) for name in ("w1", "w2", "ws")]
    module = cases.implementations(dict(zip(("w1", "w2", "ws"), weights, strict=True)))["fused"]
    if wrong := gate.disagreement(module, problem, device):
        raise RuntimeError(f"not timed, the results of {shape} {dtype} {layout} are wrong: {wrong}")
    x, dy = problem.inputs["x"].detach().to(device), problem.dy.to(device)
    pairs = [(x.clone(), dy.clone()) for _ in range(max(1, min(MOST, -(-SPREAD // x.nbytes))))]
    kept = torch.empty_like(x)
    found: dict[str, float | list[float]] = {"copy": microseconds([lambda x=x: kept.copy_(x) for x, _ in pairs])}
    w1, w2, ws = (w.float() for w in weights)
    for name in ("cuda", "triton") if device == "cuda" else ("cpu",):
        op = registry.operators[name]
        forward = [lambda x=x, op=op: op.forward(x, w1, None, w2, None, ws, None, None, False) for x, _ in pairs]
        saved = [call()[1:] for call in forward]
        backward = [
            lambda x=x, dy=dy, s=s, op=op: op.backward(dy, x, None, *s, w1, None, w2, None, ws, None, False)
            for (x, dy), s in zip(pairs, saved, strict=True)
        ]
        found[name] = [microseconds(forward), microseconds(backward)]
    torch._dynamo.reset()
    for name, cbam in {"eager": reference.cbam, "compile": torch.compile(reference.cbam, dynamic=False)}.items():
        calls = plain_calls(cbam, pairs, weights)
        found[f"{name}, forward and both"] = [microseconds(c) for c in calls]
    row = {"shape": list(shape), "dtype": dtype, "layout": layout, "x_MB": round(x.nbytes / 1e6, 1)}
    return row | {"microseconds": found}


def plain_calls(cbam: Callable, pairs: list[tuple[Tensor, Tensor]], weights: list[Tensor]) -> tuple[Calls, Calls]:
    leaves = [w.detach().requires_grad_() for w in weights]

    @torch.no_grad()
    def forward(x: Tensor) -> Tensor:
        return cbam(x, *leaves)

    def both(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(cbam(x, *leaves), [x, *leaves], dy)

    inputs = [(x.detach().requires_grad_(), dy) for x, dy in pairs]
    return [lambda x=x: forward(x) for x, _ in inputs], [lambda x=x, dy=dy: both(x, dy) for x, dy in inputs]


def training_step(name: str, batch: int, side: int, device: str, variants=networks.VARIANTS) -> dict:
    """Milliseconds of a step in bfloat16 autocast, channels_last, in turn without CBAM and with each of them."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=rng).to(device, memory_format=torch.channels_last)
    labels = torch.randint(networks.CLASSES, (batch,), generator=rng).to(device)
    built = {variant: networks.build(name, variant, images) for variant in variants}
    steps = networks.Steps(built, images, labels, training=True)
    for count in (4, ROUNDS):  # the first to warm up
        for times in steps.times.values():
            times.clear()
        for _ in range(count):
            with torch.autocast(device, torch.bfloat16):  # once a step, since it keeps the cast weights up to its end
                steps()
    seconds = steps.seconds()
    return {
        "network": name,
        **{"batch": batch, "image": side, "autocast": "bfloat16", "layout": "channels_last"},
        "ms": {variant: round(s * 1e3, 2) for variant, s in seconds.items()},
        "images/s": {variant: round(batch / s) for variant, s in seconds.items()},
        "tax %": {v: round(100 * (s / seconds["none"] - 1), 1) for v, s in seconds.items() if v != "none"},
    }


def rows() -> Iterator[dict]:
    for size, kind in product(MAPS, KINDS):
        row = operators((BATCH, *size), *kind, "cuda", graph_microseconds)
        print(json.dumps(row), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    if not out.parent.is_dir():
        parser.error(f"{out.parent} must be a folder that exists")
    if missing := registry.cuda_unserved(torch.device("cuda")):
        parser.error(f"CUDA kernels: {missing}")
    if registry.triton_missing:
        parser.error(registry.triton_missing)
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "how": HOW,
        "operators": list(rows()),
        "training step": training_step("resnet50", BATCH, 224, "cuda"),
    }
    out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
