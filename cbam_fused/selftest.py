"""python -m cbam_fused selftest: does this build compute on this machine what it should, and how fast?

Each backend is compared with the float64 reference, with itself (run to run, bit by bit), and on a GPU with its replay
from a CUDA graph; then timed beside plain PyTorch, torch.compile and a copy. All of it goes into a JSON file: what does
not run too, and what there is when the run is stopped.
"""

import json
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from . import functional, info, reference
from .ops import registry
from .tensors import accumulation_dtype

# C, H, W of the stages of ResNet-18 and ResNet-50 at 224 pixels.
MAPS = [
    (64, 56, 56),
    (128, 28, 28),
    (256, 14, 14),
    (512, 7, 7),
    (256, 56, 56),
    (512, 28, 28),
    (1024, 14, 14),
    (2048, 7, 7),
]
QUICK = [(32, 14, 14)]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
KINDS = ("plain", "biases, residual and ReLU", "BatchNorm by the batch")
REDUCTION = 16
CHECKED_IMAGES = 4
TIMED_IMAGES = {"cpu": 8, "cuda": 64}
TIMED_DTYPES = (torch.float32, torch.bfloat16)
# An error may be twice that of plain PyTorch in the same dtype, and a floor more, since that is 0 where it is the truth
# itself: so many roundings of the result, and for sums over all n elements of x sqrt(n) of the accumulation type.
ROUNDINGS = 4
# How often a tensor of x's size must be moved: forward x, y; backward x, dy, dx.
MOVED = {"forward": 2, "forward and backward": 5}


def run(out: Path, quick: bool = False) -> int:
    """Prints and writes what was found; 1 if a check failed, else 0."""
    maps = QUICK if quick else MAPS
    report: dict[str, Any] = {"about": info.facts(), "checks": [], "times": [], "finished": False}
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print("\n".join(f"{name + ':':<20} {value}" for name, value in report["about"].items()))
    try:
        for c in check([(device, backend) for device in devices for backend in backends(device)], maps):
            report["checks"].append(c)
            print(describe_check(c), flush=True)
        for device in devices:
            for t in times(device, maps):
                report["times"].append(t)
                print(describe_times(t), flush=True)
        report["finished"] = True
    finally:
        failed = sum(not c["passed"] for c in report["checks"])
        out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{len(report['checks'])} checks, {failed} failed; written to {out}")
    return int(failed > 0)


def backends(device: str) -> list[str]:
    """The kernels that can serve tensors on this device."""
    missing = {"cpu": registry.cpu_missing}
    if device == "cuda":
        missing = {"cuda": registry.cuda_unserved(torch.device("cuda")), "triton": registry.triton_missing}
    return [name for name, reason in missing.items() if not reason]


def draw(shape: tuple[int, ...], dtype: torch.dtype, layout: str, kind: str) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of cbam(), and dy, on the CPU.

    In each pixel one channel stands out, and the residual decides the sign of the sum: no rounding moves a maximum or
    a ReLU, so that implementations may be compared closely.
    """
    rng = torch.Generator().manual_seed(0)
    N, C, H, W = shape
    R = max(1, C // REDUCTION)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=rng)

    x = noise(*shape).clamp(-1.5, 1.5)
    pixels = torch.arange(H * W)
    x.flatten(2)[:, pixels % C, pixels] += 8
    w1 = noise(R, C) / (10 * C**0.5)
    w1 *= w1.sum(1, keepdim=True).sign()  # so that no hidden unit is dead
    tensors = {"x": x, "w1": w1, "w2": noise(C, R) / R**0.5, "ws": noise(1, 2, 7, 7) / 20}
    if kind == "biases, residual and ReLU":
        tensors |= {"b1": noise(R) / 10, "b2": noise(C) / 10, "bs": noise(1) / 10}
        tensors["residual"] = 16 * noise(*shape).sign()
    inputs = {name: to(t, dtype, layout) for name, t in tensors.items()}
    return inputs, to(noise(*shape), dtype, layout)


def to(t: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    return t.to(dtype, memory_format=LAYOUTS[layout] if t.dim() == 4 and len(t) > 1 else torch.preserve_format)


def norm_of(kind: str, dy: Tensor) -> nn.Module | None:
    return nn.BatchNorm2d(1).to(dy.device, dy.dtype) if kind == "BatchNorm by the batch" else None


def results(cbam: Callable, inputs: dict[str, Tensor], dy: Tensor, norm: nn.Module | None) -> dict[str, Tensor]:
    """y and the gradient of every input."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = cbam(**leaves, norm=norm, relu="residual" in leaves)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def check(served: list[tuple[str, str]], maps: list[tuple[int, int, int]]) -> Iterator[dict]:
    """Every case on each device by each backend; what raises has failed, and the error is kept."""
    for size, dtype, layout, kind in product(maps, DTYPES, LAYOUTS, KINDS):
        inputs, dy = draw((CHECKED_IMAGES, *size), dtype, layout, kind)
        doubles = {n: t.double() for n, t in inputs.items()}
        truth = results(reference.cbam, doubles, dy.double(), norm_of(kind, dy.double()))
        # On the CPU too: a GPU's convolutions round float32 to TF32, and the bound would be as loose.
        eager = results(reference.cbam, inputs, dy, norm_of(kind, dy))
        case = {"shape": [CHECKED_IMAGES, *size], "dtype": name_of(dtype), "layout": layout, "kind": kind}
        for device, backend in served:
            try:
                first, found = repeated(device, backend, inputs, dy, kind)
                found |= compare(first, eager, truth)
                outcome = {"passed": not wrong(found), "found": found}
            except Exception as error:
                text = traceback.format_exc()
                outcome = {"passed": False, "found": {}, "error": message(error), "traceback": text}
            yield {"backend": backend, **case, **outcome}


def repeated(
    device: str, backend: str, inputs: dict[str, Tensor], dy: Tensor, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backend's results, and whether it has their bits again."""
    inputs, dy = {n: t.to(device) for n, t in inputs.items()}, dy.to(device)
    norm = norm_of(kind, dy)  # not one for each call: a copy to the GPU cannot be captured
    with functional.use_backend(backend):
        first, second = (results(functional.cbam, inputs, dy, norm) for _ in range(2))
        found = {"same bits again": equal(first, second)}
        if device == "cuda":
            found["same bits from a CUDA graph"] = replayed(inputs, dy, norm)
    return first, found


def wrong(found: dict[str, Any]) -> list[str]:
    """The names of what is not as it should be, NaN among it."""
    return [n for n, f in found.items() if not (f if isinstance(f, bool) else f["error"] <= f["bound"])]


def message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def compare(got: dict[str, Tensor], eager: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, dict]:
    found = {}
    y = got["y"]
    of_sums = y.numel() ** 0.5 * torch.finfo(accumulation_dtype(y.dtype)).eps
    for name, exact in truth.items():
        error, eager_error = ((r[name].cpu().double() - exact).abs().max().item() for r in (got, eager))
        floor = (ROUNDINGS * torch.finfo(got[name].dtype).eps + of_sums) * exact.abs().max().item()
        found[name] = {"error": error, "eager": eager_error, "bound": 2 * eager_error + floor}
    return found


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def replayed(inputs: dict[str, Tensor], dy: Tensor, norm: nn.Module | None) -> bool:
    """Whether a captured forward and backward, replayed on other data, gives the bits of a new call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results(functional.cbam, inputs, dy, norm)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(functional.cbam, inputs, dy, norm)
    inputs["x"].copy_(inputs["x"].flip(0))
    graph.replay()
    return equal(captured, results(functional.cbam, inputs, dy, norm))


def times(device: str, maps: list[tuple[int, int, int]]) -> Iterator[dict]:
    for size, dtype, layout in product(maps, TIMED_DTYPES, LAYOUTS):
        shape = (TIMED_IMAGES[device], *size)
        inputs, dy = draw(shape, dtype, layout, "plain")
        leaves, dy = {n: t.to(device).requires_grad_() for n, t in inputs.items()}, dy.to(device)
        x = leaves["x"].detach()
        torch.compiler.reset()
        compiled = torch.compile(reference.cbam, dynamic=False)
        calls: dict[str, tuple[Callable, str]]
        calls = {"eager": (reference.cbam, "reference"), "torch.compile": (compiled, "reference")}
        calls |= {backend: (functional.cbam, backend) for backend in backends(device)}
        kept = torch.empty_like(x)
        found: dict[str, dict[str, float | str]] = {"copy": {"forward": measure(partial(kept.copy_, x))}}
        for name, (cbam, backend) in calls.items():
            with functional.use_backend(backend):
                found[name] = time_call(cbam, leaves, dy)
        yield {"device": device, "shape": shape, "dtype": name_of(dtype), "layout": layout, "seconds": found}


def time_call(cbam: Callable, leaves: dict[str, Tensor], dy: Tensor) -> dict[str, float | str]:
    """Seconds of each pass, or why it does not run: torch.compile needs a compiler that may not be there."""

    @torch.no_grad()
    def forward() -> None:
        cbam(**leaves)

    def both() -> None:
        torch.autograd.grad(cbam(**leaves), list(leaves.values()), dy)

    try:
        return {"forward": measure(forward), "forward and backward": measure(both)}
    except Exception as error:
        return {"error": message(error).splitlines()[0]}


def measure(call: Callable[[], object]) -> float:
    """The median time of a call; the timer waits for the GPU."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    timer.timeit(3)
    return timer.blocked_autorange(min_run_time=0.1).median


def describe_check(c: dict) -> str:
    what = f"{c['backend']:<6} {'x'.join(map(str, c['shape']))} {c['dtype']} {c['layout']} {c['kind']}"
    failure = c["error"].splitlines()[0] if "error" in c else ", ".join(wrong(c["found"]))
    return f"{what}: {'passed' if c['passed'] else f'FAILED: {failure}'}"


def describe_times(t: dict) -> str:
    size = torch.Size(t["shape"]).numel() * getattr(torch, t["dtype"]).itemsize
    lines = [f"{t['device']} {'x'.join(map(str, t['shape']))} {t['dtype']} {t['layout']}"]
    for name, seconds in t["seconds"].items():
        passes = [
            f"{p} {s * 1e6:.0f} us, {MOVED[p] * size / s / 1e9:.0f} GB/s" if p in MOVED else f"{p}: {s}"
            for p, s in seconds.items()
        ]
        lines.append(f"    {name:<14} {'; '.join(passes)}")
    return "\n".join(lines)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
