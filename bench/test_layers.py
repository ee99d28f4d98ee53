"""CBAM on every feature map of the grid: gate, time, memory."""

import pytest
import torch
from truth import Problem

from . import cases, gate, memory, timing


def pytest_generate_tests(metafunc):
    grid = cases.grid(metafunc.config.getoption("--quick"))
    metafunc.parametrize("case", grid, ids=[str(case).replace(" ", "-") for case in grid])


def test_layer(case, benchmark, add, results, quick):
    torch.manual_seed(0)
    problem = case.problem()
    modules = gated(case, problem, results)
    x = problem.inputs["x"].detach().to(case.device).requires_grad_()
    dy = problem.dy.to(case.device)
    if case.device == "cpu":
        one_round = timing.Round(modules, x, dy)
        count = timing.rounds_for(0.5 if quick else 2.5, 5, one_round)
        one_round.times = timing.Round(modules, x, dy).times  # the first round was a warm-up
        benchmark.pedantic(one_round, rounds=count, iterations=1)
        seconds = one_round.medians()
        x.grad = one_round.x.grad = None
    else:
        count = timing.REPEATS
        seconds = benchmark.pedantic(timing.layer_seconds, (modules, x, dy), rounds=1, iterations=1)
    too_fast = timing.impossible(seconds, x.nbytes)
    if too_fast:
        pytest.fail(f"{too_fast}: bytes are miscounted, work is left out, or the machine is too busy to time on")
    entry = {
        "device": case.device,
        "shape": list(case.shape),
        "dtype": case.dtype,
        "layout": case.layout,
        "rounds": count,
        "x_bytes": x.nbytes,
        "seconds": seconds,
        "kept": {name: memory.kept_for_backward(module, x) for name, module in modules.items()},
        "peak": memory.peaks(modules, x, dy),
    }
    benchmark.extra_info.update(entry)
    add("layers", entry)


def gated(case: cases.Case, problem: Problem, results: dict) -> dict[str, torch.nn.Module]:
    """The implementations that agree with float64; the case fails if the fused one does not."""
    modules = cases.implementations({n: problem.inputs[n].detach().to(case.device) for n in ("w1", "w2", "ws")})
    for name in [name for name in modules if name != "eager"]:
        wrong = gate.disagreement(modules[name], problem, case.device)
        if wrong and name == "fused":
            pytest.fail(f"not timed, the results of the fused module are wrong: {wrong}")
        if wrong:
            results["refused"].append(f"{case}: {name}: {wrong}")
            del modules[name]
    return modules
