"""Random problems, and the comparison with the float64 reference in every numerical test.

The tolerance: the error of the fused result against float64 is at most twice the error of the eager reference in the
same dtype, plus a floor, since eager is sometimes exact by chance, in particular for single numbers and short sums. The
floor is the unavoidable error: a rounding of the result, and MOVED times the change of the exact result when every
input changes by half a unit in the last place of the accumulation dtype.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cbam_fused import functional, reference

NAMES = ("x", "w1", "w2", "ws", "b1", "b2", "bs", "residual")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

MOVED = 16  # roundings of the input and of about a dozen intermediate results


@dataclass
class Problem:
    """The arguments of cbam() by name, and the gradient for its backward."""

    inputs: dict[str, Tensor | None]
    relu: bool
    dy: Tensor

    def to(self, dtype: torch.dtype, params: torch.dtype | None = None) -> "Problem":
        def cast(name: str, t: Tensor | None) -> Tensor | None:
            wanted = dtype if params is None or name in ("x", "residual") else params
            return None if t is None else t.detach().to(wanted).requires_grad_(t.requires_grad)

        return Problem({n: cast(n, t) for n, t in self.inputs.items()}, self.relu, self.dy.to(dtype))

    def run(self, cbam) -> dict[str, Tensor]:
        """y and the gradient of every input that needs one, by the names "y", "dx", "dw1", ..."""
        leaves = {n: t for n, t in self.inputs.items() if t is not None and t.requires_grad}
        y = cbam(**self.inputs, relu=self.relu)
        grads = torch.autograd.grad(y, list(leaves.values()), self.dy) if leaves else ()
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
    """A problem on ReLU'd data: half of x is zero, so maxima are tied, and one of several channels is zero."""
    rng = torch.Generator().manual_seed(seed)
    N, C, H, W = shape

    def draw(*size: int, fan_in: int = 1) -> Tensor:
        return torch.randn(*size, generator=rng) / fan_in**0.5

    x = (draw(*shape).relu() * scale).clamp(max=min(torch.finfo(dtype).max, torch.finfo(torch.float32).max))
    if C > 1:
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


def negative_problem(*args, **options) -> Problem:
    """random_problem with x below zero: a zero beyond the last element of a row or column would be the maximum."""
    problem = random_problem(*args, **options)
    with torch.no_grad():
        problem.inputs["x"].sub_(8)
    return problem


def errors(got: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    return {n: (got[n].double() - truth[n]).abs().max().item() if truth[n].numel() else 0.0 for n in truth}


def moved(exact: Problem, truth: dict[str, Tensor], eps: float, plain=reference.cbam) -> dict[str, float]:
    """The change of the exact results for random relative changes of the inputs up to eps / 2: the largest of four."""
    rng = torch.Generator().manual_seed(0)

    def change(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        factor = 1 + eps * (torch.rand(t.shape, generator=rng, dtype=torch.float64) - 0.5)
        return (t.detach() * factor).requires_grad_(t.requires_grad)

    changed = [
        Problem({n: change(t) for n, t in exact.inputs.items()}, exact.relu, change(exact.dy)).run(plain)
        for _ in range(4)
    ]
    return {n: max(errors(c, truth)[n] for c in changed) for n in truth}


def compare(problem: Problem, fused=functional.cbam, plain=reference.cbam) -> dict[str, tuple[float, float, float]]:
    """For y and each gradient: the errors of fused and eager, and the bound for fused."""
    dtype = problem.dy.dtype
    exact = problem.to(torch.float64)
    truth = exact.run(plain)
    eager = errors(problem.to(dtype).run(plain), truth)
    got = problem.run(fused)
    found = errors(got, truth)
    result = {}
    for name, t in truth.items():
        largest = t.abs().max().item() if t.numel() else 0.0
        floor = torch.finfo(got[name].dtype).eps * largest + torch.finfo(torch.float64).eps
        result[name] = found[name], eager[name], 2 * eager[name] + floor
    if any(error > bound for error, _, bound in result.values()):  # else it need not be known what was unavoidable
        # In float64 the truth has an error of its own, and eager none against it.
        eps = 4 * torch.finfo(dtype).eps if dtype == torch.float64 else torch.finfo(torch.float32).eps
        unavoidable = moved(exact, truth, eps, plain)
        result = {n: (error, e, bound + MOVED * unavoidable[n]) for n, (error, e, bound) in result.items()}
    return result


def assert_close_to_truth(problem: Problem, fused=functional.cbam, plain=reference.cbam) -> None:
    for name, (error, eager, bound) in compare(problem, fused, plain).items():
        assert error <= bound, f"{name}: error {error:.3g} of fused against {eager:.3g} of eager, bound {bound:.3g}"


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
