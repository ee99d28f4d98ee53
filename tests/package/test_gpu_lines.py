"""Each line of the programs for a GPU runs on a fake GPU."""

import dis
import json
import sys
import types
from pathlib import Path

import pytest
import torch

import bench.profile
from bench import cases, gpu, timing

pytestmark = pytest.mark.usefixtures("one_thread")


def functions_of(module: types.ModuleType) -> list[types.CodeType]:
    path = Path(module.__file__)
    whole = compile(path.read_text(), str(path), "exec")
    return [c for c in whole.co_consts if isinstance(c, types.CodeType)]


def lines_of(code: types.CodeType) -> set[int]:
    found = {line for _, line in dis.findlinestarts(code) if line} - {code.co_firstlineno}
    return found.union(*(lines_of(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def not_run(call, functions: list[types.CodeType]) -> list[str]:
    """The lines of the functions that a call does not run."""
    ran: dict[str, set[int]] = {code.co_filename: set() for code in functions}

    def trace(frame, event, _):
        if frame.f_code.co_filename not in ran:
            return None
        ran[frame.f_code.co_filename].add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    left = sorted((c.co_filename, n) for c in functions for n in lines_of(c) - ran[c.co_filename])
    return [Path(name).read_text().splitlines()[n - 1].strip() for name, n in left]


def test_every_line_runs_on_the_stand_in(small_gpu, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(out), "--maps", "16x8x8"])
    left = not_run(gpu.main, functions_of(gpu) + functions_of(bench.profile))
    assert left == [
        'parser.error(f"{options.out.parent} must be a folder that exists")',
        'parser.error(f"CUDA kernels: {missing}")',
        "parser.error(registry.triton_missing)",
        'print(f"FAILED {name}: {error}")',
        "except Exception as error:",
        'result = record.data["failed"][name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"',
        "try:",
        "torch.cuda.synchronize()",
        "record.save()",
        'raise RuntimeError(f"not timed, the results are wrong: {wrong}")',
    ]
    data = json.loads(out.read_text())
    rows = data["operators"]
    assert [(r["dtype"], r["layout"]) for r in rows] == gpu.KINDS and data["failed"] == {}
    for row in rows:
        assert row["shape"] == [4, 16, 8, 8] and [*row["microseconds"]] == [
            *("copy", "cuda", "compile, forward and both", "triton", "eager, forward and both"),
            "compile max-autotune, forward and both",
        ]
    step = data["training step"]
    for name in ("ms", "host ms", "graph ms"):
        assert set(step[name]) == {"none", "fused", "compile", "eager"} and all(t > 0 for t in step[name].values())
    assert set(step["tax %"]) == {"fused", "compile", "eager"} and set(data["profile"]) == {"fused", "none"}
    for profile in data["profile"].values():
        assert len(profile["largest kernels"]) == len(profile["longest gaps"]) == len(profile["host"]) == 10


def test_every_line_of_the_timing_runs_on_the_stand_in(small_gpu):
    """Those for a GPU; other tests cover the rounds of the CPU and the check of bandwidths."""
    names = ("event", "between", "copies", "graph_seconds", "replay_seconds", "passes", "layer_seconds", "step_seconds")
    functions = [getattr(timing, name).__code__ for name in names]
    x = torch.randn(4, 16, 8, 8, device="cuda", requires_grad=True)
    module = cases.implementations({n: torch.randn(s, device="cuda") for n, s in WEIGHTS.items()})["eager"]

    def call():
        seconds = timing.layer_seconds({"eager": module}, x, torch.randn_like(x))
        assert seconds.keys() == timing.MOVED.keys() and seconds["forward"].keys() == {"eager", "clone", "copy"}
        timing.step_seconds(lambda: module(x), "cuda")

    assert not_run(call, functions) == ["step()", "return (time.perf_counter() - start,) * 2"]


WEIGHTS = {"w1": (1, 16, 1, 1), "w2": (16, 1, 1, 1), "ws": (1, 2, 7, 7)}
