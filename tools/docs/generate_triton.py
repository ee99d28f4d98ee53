"""The tables of docs/design/triton.md: python tools/docs/generate_triton.py

Counts their bytes in Triton's interpreter and compiles them for five GPUs, neither of which needs a GPU.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of Triton
ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
sys.path[:0] = [str(ROOT), str(SUPPORT)]

import doc_tables  # noqa: E402
import torch  # noqa: E402
import triton_targets  # noqa: E402
from triton_checker import Checker  # noqa: E402
from triton_traffic import LARGE, EagerBytes  # noqa: E402
from truth import random_problem  # noqa: E402

from cbam_fused import functional, reference, use_backend  # noqa: E402

SHAPE = (1, 128, 28, 28)
FORWARD = ("cbam_fwd_channel_pool", "cbam_fwd_channel_gate", "cbam_fwd_spatial_pool", "cbam_fwd_apply")

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def main() -> None:
    checkers = {layout: watch(layout) for layout in LAYOUTS}
    doc_tables.write("design/triton.md", traffic(checkers) | {"compiled": compiled()})


def traffic(checkers: dict[str, Checker]) -> dict[str, str]:
    """The tables traffic, of each kernel, and comparison, with plain PyTorch."""
    header = ["kernel", "layout", "x-sized read", "x-sized written", "small, distinct", "small, requested", "sectors"]
    against = ["pass", "layout", "Triton, x-sized", "Triton, small, distinct", "plain PyTorch"]
    return {
        "traffic": doc_tables.table(header, kernel_rows(checkers)),
        "comparison": doc_tables.table(against, comparison_rows(checkers)),
    }


def watch(layout: str) -> Checker:
    with use_backend("triton"), Checker() as checker:
        problem_in(layout).run(functional.cbam)
    return checker


def problem_in(layout: str):
    return random_problem(SHAPE, torch.float32, LAYOUTS[layout])


def kernel_rows(checkers: dict[str, Checker]) -> list[list[str]]:
    lines, x = [], 4 * math.prod(SHAPE)
    for layout, checker in checkers.items():
        for kernel, arguments in checker.traffic.items():
            large = [t for argument, t in arguments.items() if argument in LARGE]
            small = [t for argument, t in arguments.items() if argument not in LARGE]
            read, written = sum(t.loaded for t in large), sum(t.stored for t in large)
            sectors = f"{(read + written) / (32 * sum(t.sectors for t in large)):.0%}" if large else ""
            distinct, requested = sum(t.distinct for t in small), sum(t.loaded + t.stored for t in small)
            numbers = [f"{read / x:g}", f"{written / x:g}", f"{distinct / x:.3f}", f"{requested / x:.3f}", sectors]
            lines.append([f"`{kernel}`", layout, *numbers])
    return lines


def comparison_rows(checkers: dict[str, Checker]) -> list[list[str]]:
    lines, x = [], 4 * math.prod(SHAPE)
    for layout, checker in checkers.items():
        forward, both = eager_bytes(problem_in(layout))
        parts = (("forward", FORWARD, forward), ("backward", checker.traffic.keys() - FORWARD, both - forward))
        for part, kernels, eager in parts:
            pairs = [pair for kernel in kernels for pair in checker.traffic[kernel].items()]
            large = sum(t.loaded + t.stored for argument, t in pairs if argument in LARGE)
            small = sum(t.distinct for argument, t in pairs if argument not in LARGE)
            lines.append([part, layout, f"{large / x:g}", f"{small / x:.3f}", f"{eager / x:.1f}"])
    return lines


def eager_bytes(problem) -> tuple[int, int]:
    """What plain PyTorch moves forward, and forward and backward."""
    with EagerBytes() as forward, torch.no_grad():
        reference.cbam(**problem.inputs, relu=problem.relu)
    with EagerBytes() as both:
        problem.run(reference.cbam)
    return forward.bytes, both.bytes


def compiled() -> str:
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    rows = {}
    for target in triton_targets.TARGETS:
        command = [sys.executable, SUPPORT / "triton_targets.py", target]
        for k in json.loads(subprocess.check_output(command, env=env)):
            if k["rest"]:
                continue
            cell = f"{k['registers']}, {k['shared'] / 1024:g} KiB, {k['occupancy']:.0%}"
            rows.setdefault((k["kernel"], k["dtype"], k["layout"]), {})[target] = cell
    columns = list(triton_targets.TARGETS)
    return doc_tables.table(
        ["kernel", "dtype", "layout", *columns],
        [
            [f"`{kernel}`", dtype, layout, *(cells[t] for t in columns)]
            for (kernel, dtype, layout), cells in rows.items()
        ],
    )


if __name__ == "__main__":
    main()
