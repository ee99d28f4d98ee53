"""Measures the data of docs/results/h100.json on this GPU: python -m bench.gpu FILE

The operators run in CUDA graphs, without Python and without launches from the CPU, compared with plain PyTorch,
torch.compile at its best settings and a copy; each map must pass the gate of bench/ first. Then a training step of a
network, and its profile. Each figure is written to FILE at once, and an interrupted run resumes from it.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from cbam_fused import info, reference, resume, routing
from cbam_fused.ops import registry
from cbam_fused.selftest import MAPS

from . import cases, gate, networks
from .profile import profile_step
from .timing import LEAST, REPEATS, copies, graph_seconds, passes, replay_seconds

DEVICE = "cuda"
BATCH, DRAWN = 64, 4
NETWORK, SIDE = "resnet50", 224
KINDS = [("bfloat16", "nchw"), ("bfloat16", "nhwc"), ("float32", "nchw")]
ROUNDS = 5
HOW = (
    f"median of {REPEATS} times at least {LEAST * 1e3:g} ms of replays of a CUDA graph that calls the operator on "
    f"tensors in turn, of which there are three times what L2 holds; {DRAWN} images, repeated; weights in float32 for "
    "the operators, in x's type for plain PyTorch. The training step: between two events around several in a row; the "
    "host alone, from an idle GPU; as a CUDA graph"
)
# Settings of torch.compile; the better one is the peer. All run in CUDA graphs anyway.
MODES = {"compile": None, "autotuned": "max-autotune-no-cudagraphs"}
PLAIN = {"compile": "compile", "autotuned": "compile max-autotune", "eager": "eager"}
# In order of importance: an interrupted part leaves the earlier ones complete.
PARTS = ("copy", "cuda", "step", "profile", "compile", "triton", "eager", "autotuned")
Size = tuple[int, int, int]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="in this order; default: all")
    resume.add_arguments(parser)
    options = parser.parse_args()
    if not options.out.parent.is_dir():
        parser.error(f"{options.out.parent} must be a folder that exists")
    if missing := registry.cuda_unserved(torch.device(DEVICE)):
        parser.error(f"CUDA kernels: {missing}")
    if registry.triton_missing:
        parser.error(registry.triton_missing)
    record = resume.Record(options.out, info.facts())
    record.data |= {
        "gpu": torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "how": HOW,
    }
    for name, empty in (("operators", []), ("training step", {}), ("profile", {}), ("failed", {})):
        record.data.setdefault(name, empty)
    record.save()
    left = jobs(record.data, options.parts, options.maps or MAPS, options.out)
    with resume.limited(options.minutes):
        for name, job in left:
            run(record, name, job)
        print("everything is done")
    for name, error in record.data["failed"].items():
        print(f"FAILED {name}: {error}")
    return int(bool(record.data["failed"]))


def run(record: resume.Record, name: str, job: Callable[[], object]) -> None:
    """One figure. An exception is a failure and is not retried, unless this process lost the GPU."""
    start = time.perf_counter()
    try:
        result = job()
    except Exception as error:
        result = record.data["failed"][name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        try:
            torch.cuda.synchronize()
        finally:
            record.save()
    record.save()
    print(f"{name}: {json.dumps(result)} ({time.perf_counter() - start:.1f} s)", flush=True)


def jobs(data: dict, parts: tuple[str, ...], maps: list[Size], out: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """The name of each missing figure, and the function that puts it into data and returns it."""
    for part in parts:
        if part in ("step", "profile"):
            done = data["training step"].get("graph ms", {}) if part == "step" else data["profile"]
            for variant in ("fused", "compile", "eager") if part == "step" else ("fused", "none"):
                name = f"{part} {variant}"
                if variant not in done and name not in data["failed"]:
                    if part == "step":
                        yield name, partial(training_step, data["training step"], variant)
                    else:
                        trace = out.with_name(f"{out.stem}_{variant}.trace.json")
                        yield name, partial(profiled, data["profile"], variant, trace)
            continue
        for size, (dtype, layout) in product(maps, KINDS):
            row = row_of(data["operators"], size, dtype, layout)
            name = f"{part} {'x'.join(map(str, row['shape']))} {dtype} {layout}"
            if label_of(part) not in row["microseconds"] and name not in data["failed"]:
                yield name, partial(operator, row, part, size, dtype, layout)


def row_of(rows: list[dict], size: Size, dtype: str, layout: str) -> dict:
    """The row of a map, created if missing."""
    row = {"shape": [BATCH, *size], "dtype": dtype, "layout": layout}
    for found in rows:
        if found.items() >= row.items():
            return found
    itemsize = cases.DTYPES[dtype].itemsize
    rows.append(row | {"x_MB": round(torch.Size(row["shape"]).numel() * itemsize / 1e6, 1), "microseconds": {}})
    return rows[-1]


def label_of(part: str) -> str:
    return f"{PLAIN[part]}, forward and both" if part in PLAIN else part


def operator(row: dict, part: str, size: Size, dtype: str, layout: str) -> object:
    """One figure of a row. Ours: forward, backward; plain PyTorch: forward, forward and backward."""
    problem, inputs, dy = drawn(size, dtype, layout)
    found: float | list[float]
    if part == "copy":
        found = microseconds([x.clone for (x,) in copies(inputs["x"])])
    elif part in PLAIN:
        found = plain(part, inputs, dy)
    else:
        found = ours(part, problem, inputs, dy)
    row["microseconds"][label_of(part)] = found
    return found


@lru_cache(maxsize=1)
def drawn(size: Size, dtype: str, layout: str) -> tuple[gate.Problem, dict[str, Tensor], Tensor]:
    """A problem of a few images, drawn and repeated on the CPU, and its x, w1, w2, ws and dy on the GPU."""
    problem = cases.Case(DEVICE, (DRAWN, *size), dtype, layout).problem()

    def repeated(t: Tensor) -> Tensor:
        return t.detach().repeat(BATCH // DRAWN, 1, 1, 1).contiguous(memory_format=cases.LAYOUTS[layout])

    x = repeated(problem.inputs["x"]).requires_grad_()
    problem = gate.Problem(problem.inputs | {"x": x}, problem.relu, repeated(problem.dy))
    inputs = {name: problem.inputs[name].detach().to(DEVICE) for name in ("x", "w1", "w2", "ws")}
    return problem, inputs, problem.dy.to(DEVICE)


def ours(backend: str, problem: gate.Problem, inputs: dict[str, Tensor], dy: Tensor) -> list[float]:
    """The times of a backend's operators, after a check of their results.

    Raises:
        RuntimeError: the results are wrong.
    """
    x, *weights = inputs.values()
    module = cases.implementations(dict(zip(("w1", "w2", "ws"), weights, strict=True)))["fused"]
    with routing.use_backend(backend):
        if wrong := gate.disagreement(module, problem, DEVICE):
            raise RuntimeError(f"not timed, the results are wrong: {wrong}")
    w1, w2, ws = (w.float() for w in weights)
    op, pairs = registry.operators[backend], copies(x, dy)
    forward = [partial(op.forward, x, w1, w2, ws, None, None, None, None, False, 0) for x, _ in pairs]
    backward = [
        partial(op.backward, dy, x, None, *call()[1:], w1, w2, ws, None, None, None, 0)
        for call, (x, dy) in zip(forward, pairs, strict=True)
    ]
    return [microseconds(forward), microseconds(backward)]


def plain(part: str, inputs: dict[str, Tensor], dy: Tensor) -> list[float]:
    torch.compiler.reset()
    cbam = reference.cbam
    if part in MODES:
        cbam = torch.compile(cbam, dynamic=False, mode=MODES[part])
    x, *weights = inputs.values()
    calls = passes(cbam, copies(x, dy), [w.detach().requires_grad_() for w in weights])
    return [microseconds(calls["forward"]), microseconds(calls["both"])]


def microseconds(calls: list[Callable[[], object]]) -> float:
    return round(graph_seconds(calls) * 1e6, 2)


def steps_of(*variants: str) -> networks.Steps:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=rng).to(DEVICE, memory_format=torch.channels_last)
    labels = torch.randint(networks.CLASSES, (BATCH,), generator=rng).to(DEVICE)
    torch.compiler.reset()
    built = {variant: networks.build(NETWORK, variant, images) for variant in variants}
    return networks.Steps(built, images, labels, training=True, amp=torch.bfloat16)


def training_step(found: dict, variant: str) -> dict[str, float]:
    """A step in bfloat16 autocast, channels_last, in turn without CBAM and with it; none keeps its first."""
    steps = steps_of("none", variant)
    for count in (1, ROUNDS):  # the first to warm up
        steps.clear()
        for _ in range(count):
            steps()
    found |= {"network": NETWORK, "batch": BATCH, "image": SIDE, "autocast": "bfloat16", "layout": "channels_last"}
    found.setdefault("tax %", {})[variant] = round(100 * steps.tax()[variant][1], 1)

    def add(name: str, seconds: dict[str, float]) -> None:
        by_variant = found.setdefault(name, {})
        by_variant |= {v: round(s * 1e3, 3) for v, s in seconds.items() if v not in by_variant}

    add("ms", steps.seconds())
    add("host ms", steps.seconds(steps.host))
    found["images/s"] = {v: round(1e3 * BATCH / ms) for v, ms in found["ms"].items()}
    add("graph ms", {name: replay_seconds(partial(steps.step, name)) for name in steps.networks})
    return {name: found[name][variant] for name in ("ms", "host ms", "graph ms", "tax %")}


def profiled(found: dict, variant: str, trace: Path) -> dict:
    steps = steps_of(variant)
    steps()  # to warm up
    found[variant] = profile_step(partial(steps.step, variant), trace)
    return {name: found[variant][name] for name in ("kernels", "busy ms", "idle ms", "host ms")}


if __name__ == "__main__":
    raise SystemExit(main())
