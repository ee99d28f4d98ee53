"""The correctness gate: an implementation whose results are wrong is not timed.

The rule is the one of tests/support/truth.py. What is judged is the very module that is timed, on the very feature map,
in training and without gradients. Only the float64 truth is made cheap: CBAM treats images one by one, so the first and
the last image are compared, and dy is zero for all others, which takes them out of the weights' gradients as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from truth import Problem, compare


@dataclass
class Measured(Problem):
    """A problem whose "fused" results, for truth.compare, are those that a module gave."""

    results: dict[str, Tensor]

    def run(self, cbam) -> dict[str, Tensor]:
        return self.results


def disagreement(module: nn.Module, problem: Problem, device: str) -> str:
    """What is wrong with the results of module, whose weights are those of problem; empty if nothing is."""
    picked = sorted({0, len(problem.dy) - 1})
    dy = torch.zeros_like(problem.dy)
    dy[picked] = problem.dy[picked]
    x = problem.inputs["x"].detach().to(device).requires_grad_()
    y = module(x)
    dx, *dweights = torch.autograd.grad(y, [x, *module.weights()], dy.to(device))
    with torch.no_grad():
        both = torch.stack([y[picked], module(x)[picked]])  # the comparison broadcasts, so it takes the worse one
    results = {"y": both, "dx": dx[picked]} | dict(zip(("dw1", "dw2", "dws"), dweights, strict=True))
    results = {name: t.detach().cpu() for name, t in results.items()}
    inputs = problem.inputs | {"x": problem.inputs["x"].detach()[picked].requires_grad_()}
    errors = compare(Measured(inputs, problem.relu, problem.dy[picked], results))
    # "not <=", so that NaN is wrong too.
    wrong = {name: e for name, e in errors.items() if not e[0] <= e[2]}
    return "; ".join(f"{n}: error {got:.3g}, eager {eager:.3g}, bound {b:.3g}" for n, (got, eager, b) in wrong.items())
