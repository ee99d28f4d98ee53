"""python -m cbam_fused selftest: checks the results of this build on this machine.

It compares each backend with the float64 reference, with a second run (bitwise), and on a GPU with its replay from a
CUDA graph. It writes each outcome, including errors, to a JSON file at once, and resumes from this file. It measures no
times; bench/ in the repository does.
"""

import traceback
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import functional, info, reference, routing
from .ops import registry
from .resume import Record, limited
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
# The error may be twice that of plain PyTorch in the same dtype, plus a floor, since plain PyTorch may have error 0:
# ROUNDINGS roundings of the result, and for sums over all n elements of x sqrt(n) roundings of the accumulation dtype.
ROUNDINGS = 4


def run(
    out: Path,
    quick: bool = False,
    minutes: float | None = None,
    maps: list[tuple[int, int, int]] | None = None,
    parts: list[str] | None = None,
) -> int:
    """Print and write the outcomes; return 1 if a check failed, else 0.

    Args:
        out: a finished file is replaced, an unfinished one is continued.
        minutes: time limit.
        maps: (C, H, W) each.
        parts: the backends to check; default: all that can serve tensors here.
    """
    record = Record(out, info.facts())
    report = record.data
    report |= {"checks": report.get("checks", []), "finished": False}
    served = [(device, name) for device in devices() for name in backends(device)]
    if missing := sorted(set(parts or ()) - {name for _, name in served}):
        raise SystemExit(f"parts must be of {', '.join(name for _, name in served)}, got {', '.join(missing)}")
    served = [pair for pair in served if parts is None or pair[1] in parts]
    record.save()
    print("\n".join(f"{name + ':':<20} {value}" for name, value in report["about"].items()))
    for c in report["checks"]:
        print(f"{describe(c)} (earlier)")
    with limited(minutes):
        for c in check(served, maps or (QUICK if quick else MAPS), report["checks"]):
            report["checks"].append(c)
            record.save()
            print(describe(c), flush=True)
        report["finished"] = True
        record.save()
    failed = sum(not c["passed"] for c in report["checks"])
    rest = "" if report["finished"] else "; stopped, the same command resumes"
    print(f"{len(report['checks'])} checks, {failed} failed; written to {out}{rest}")
    return int(failed > 0)


def devices() -> list[str]:
    return ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def backends(device: str) -> list[str]:
    """The kernels that can serve tensors on this device."""
    missing = {"cpu": registry.cpu_missing}
    if device == "cuda":
        missing = {"cuda": registry.cuda_unserved(torch.device("cuda")), "triton": registry.triton_missing}
    return [name for name, reason in missing.items() if not reason]


def draw(shape: tuple[int, ...], dtype: torch.dtype, layout: str, kind: str) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of cbam(), and dy, on the CPU.

    In each pixel one channel stands out, and the residual determines the sign of the sum. So no rounding changes an
    argmax or a ReLU, and implementations can be compared closely.
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
    w1 *= w1.sum(1, keepdim=True).sign()  # no hidden unit is dead
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


def check(served: list[tuple[str, str]], maps: list[tuple[int, int, int]], done: list[dict]) -> Iterator[dict]:
    """Every case by each (device, backend), except those done; an exception is a failure and is recorded."""
    keys = {key(c) for c in done}
    for kind, dtype, layout, size in product(KINDS, DTYPES, LAYOUTS, maps):
        case = {"shape": [CHECKED_IMAGES, *size], "dtype": name_of(dtype), "layout": layout, "kind": kind}
        left = [(device, backend) for device, backend in served if key({"backend": backend, **case}) not in keys]
        if not left:
            continue
        inputs, dy = draw((CHECKED_IMAGES, *size), dtype, layout, kind)
        doubles = {n: t.double() for n, t in inputs.items()}
        truth = results(reference.cbam, doubles, dy.double(), norm_of(kind, dy.double()))
        # On the CPU, since a GPU's convolutions round float32 to TF32, which would loosen the bound.
        eager = results(reference.cbam, inputs, dy, norm_of(kind, dy))
        for device, backend in left:
            try:
                first, found = repeated(device, backend, inputs, dy, kind)
                found |= compare(first, eager, truth)
                outcome = {"passed": not wrong(found), "found": found}
            except Exception as error:
                text = traceback.format_exc()
                outcome = {"passed": False, "found": {}, "error": message(error), "traceback": text}
            yield {"backend": backend, **case, **outcome}


def key(c: dict) -> tuple:
    return c["backend"], *c["shape"], c["dtype"], c["layout"], c["kind"]


def repeated(
    device: str, backend: str, inputs: dict[str, Tensor], dy: Tensor, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The backend's results, and whether a second run has the same bits."""
    inputs, dy = {n: t.to(device) for n, t in inputs.items()}, dy.to(device)
    norm = norm_of(kind, dy)  # one for all calls: a copy to the GPU cannot be captured
    with routing.use_backend(backend):
        first, second = (results(functional.cbam, inputs, dy, norm) for _ in range(2))
        found = {"same bits again": equal(first, second)}
        if device == "cuda":
            found["same bits from a CUDA graph"] = replayed(inputs, dy, norm)
    return first, found


def wrong(found: dict[str, Any]) -> list[str]:
    """The names of failed comparisons; NaN fails."""
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
    """Whether a captured forward and backward, replayed on other data, has the bits of a new call."""
    graph, outputs = captured(lambda: results(functional.cbam, inputs, dy, norm))
    inputs["x"].copy_(inputs["x"].flip(0))
    graph.replay()
    return equal(outputs, results(functional.cbam, inputs, dy, norm))


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call, captured after a warm-up call, and its results, which every replay overwrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph, outputs


def describe(c: dict) -> str:
    what = f"{c['backend']:<6} {'x'.join(map(str, c['shape']))} {c['dtype']} {c['layout']} {c['kind']}"
    failure = c["error"].splitlines()[0] if "error" in c else ", ".join(wrong(c["found"]))
    return f"{what}: {'passed' if c['passed'] else f'FAILED: {failure}'}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
