"""Random problems, and the comparison with the float64 reference that every numerical test makes.

The rule: the error of the fused result against float64 is at most twice that of the eager reference in the same
dtype, plus a small floor for the cases where eager happens to be exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cbam_fused import functional, reference

NAMES = ("x", "w1", "w2", "ws", "b1", "b2", "bs", "residual")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

# The floor, relative to the largest value of the true tensor. In float64 eager is its own truth, so the floor is all.
FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@dataclass
class Problem:
    """The arguments of cbam() by name, and the gradient that its backward starts from."""

    inputs: dict[str, Tensor | None]
    relu: bool
    dy: Tensor

    def to(self, dtype: torch.dtype, params: torch.dtype | None = None) -> "Problem":
        def cast(name: str, t: Tensor | None) -> Tensor | None:
            wanted = dtype if params is None or name in ("x", "residual") else params
            return None if t is None else t.detach().to(wanted).requires_grad_(t.requires_grad)

        return Problem({n: cast(n, t) for n, t in self.inputs.items()}, self.relu, self.dy.to(dtype))

    def run(self, cbam) -> dict[str, Tensor]:
        """y and the gradient of every input, under the names "y", "dx", "dw1", ..."""
        leaves = {n: t for n, t in self.inputs.items() if t is not None}
        y = cbam(**self.inputs, relu=self.relu)
        grads = torch.autograd.grad(y, list(leaves.values()), self.dy)
        return {"y": y.detach()} | {f"d{n}": g for n, g in zip(leaves, grads, strict=True)}


def random_problem(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    *,
    hidden: int = 4,
    kernel_size: int = 7,
    biases: bool = False,
    residual: bool = False,
    relu: bool = False,
    params: torch.dtype | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Problem:
    """A problem on ReLU'd data: half of x is zero, so maxima are tied, and one channel is zero everywhere."""
    rng = torch.Generator().manual_seed(seed)
    N, C, H, W = shape

    def draw(*size: int, fan_in: int = 1) -> Tensor:
        return torch.randn(*size, generator=rng) / fan_in**0.5

    x = draw(*shape).relu() * scale
    x[:, C // 2] = 0
    tensors = {
        "x": x.to(dtype).to(memory_format=layout),
        "w1": draw(hidden, C, 1, 1, fan_in=C),
        "w2": draw(C, hidden, 1, 1, fan_in=hidden),
        "ws": draw(1, 2, kernel_size, kernel_size, fan_in=kernel_size),
        "b1": draw(hidden) if biases else None,
        "b2": draw(C) if biases else None,
        "bs": draw(1) if biases else None,
        "residual": draw(*shape).to(dtype).to(memory_format=layout) if residual else None,
    }
    for name, t in tensors.items():
        if t is not None:
            t = t.to(params or dtype) if name not in ("x", "residual") else t
            tensors[name] = t.requires_grad_()
    return Problem(tensors, relu, draw(*shape).to(dtype).to(memory_format=layout))


def errors(got: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {n: (got[n].double() - truth[n]).abs().max().item() if truth[n].numel() else 0.0 for n in truth}


def compare(problem: Problem) -> dict[str, tuple[float, float, float]]:
    """For y and each gradient: the errors of fused and of eager, and the bound that the rule sets for fused."""
    dtype = problem.dy.dtype
    truth = problem.to(torch.float64).run(reference.cbam)
    eager = errors(problem.to(dtype).run(reference.cbam), truth)
    fused = errors(problem.run(functional.cbam), truth)
    result = {}
    for name, t in truth.items():
        largest = t.abs().max().item() if t.numel() else 0.0
        result[name] = fused[name], eager[name], 2 * eager[name] + FLOOR[dtype] * largest + FLOOR[torch.float64]
    return result


def assert_close_to_truth(problem: Problem) -> None:
    for name, (fused, eager, bound) in compare(problem).items():
        assert fused <= bound, f"{name}: error {fused:.3g} of fused against {eager:.3g} of eager, bound {bound:.3g}"
