"""The correctness gate: an implementation with wrong results is not timed.

The tolerance is that of tests/support/truth.py. The gate checks the timed module itself on the timed feature map, in
training and without gradients. To make the float64 truth cheap, it compares the first and the last image, since CBAM
treats images one by one; dy is zero for all others, which removes them from the weights' gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from truth import Problem, compare


@dataclass
class Measured(Problem):
    """A problem whose "fused" results, for truth.compare, are those of a module."""

    results: dict[str, Tensor]

    def run(self, cbam) -> dict[str, Tensor]:
        return self.results


def disagreement(module: nn.Module, problem: Problem, device: str) -> str:
    """What is wrong with the results of module, which has the weights of problem; empty if nothing."""
    picked = sorted({0, len(problem.dy) - 1})
    dy = torch.zeros_like(problem.dy)
    dy[picked] = problem.dy[picked]
    x = problem.inputs["x"].detach().to(device).requires_grad_()
    y = module(x)
    dx, *dweights = torch.autograd.grad(y, [x, *module.weights()], dy.to(device))
    with torch.no_grad():
        both = torch.stack([y[picked], module(x)[picked]])  # the comparison broadcasts and uses the worse one
    results = {"y": both, "dx": dx[picked]} | dict(zip(("dw1", "dw2", "dws"), dweights, strict=True))
    results = {name: t.detach().cpu() for name, t in results.items()}
    inputs = problem.inputs | {"x": problem.inputs["x"].detach()[picked].requires_grad_()}
    errors = compare(Measured(inputs, problem.relu, problem.dy[picked], results))
    # "not <=", so that NaN fails.
    wrong = {name: e for name, e in errors.items() if not e[0] <= e[2]}
    return "; ".join(f"{n}: error {got:.3g}, eager {eager:.3g}, bound {b:.3g}" for n, (got, eager, b) in wrong.items())
