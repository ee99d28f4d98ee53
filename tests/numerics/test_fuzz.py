"""11,000 random calls: each returns the reference's result, or raises the documented error."""

import os

import pytest
import torch
from fuzz import CASES, WRONG, wrong
from fuzz_modules import MODULE_CASES
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from truth import NAMES, compare

import cbam_fused
from cbam_fused import reference

ODD_NAN = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32).item()


def cases(number: int):
    """All of them in `make test-all`, otherwise a tenth."""
    number = number if "CBAM_FUSED_SLOW" in os.environ else number // 10
    options = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
    return settings(max_examples=number, **options, phases=[Phase.generate, Phase.shrink])


@pytest.fixture(autouse=True)
def small_problems_in_one_thread(one_thread):
    """For speed."""


def on_meta(t):
    if t is None:
        return None
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta").requires_grad_(t.requires_grad)


def signature(results):
    """Shapes, dtypes and strides; strides of dimensions with one element and of empty tensors do not count."""
    meaning = {n: [s for s, size in zip(t.stride(), t.shape, strict=True) if size > 1] for n, t in results.items()}
    return {n: (t.shape, t.dtype, meaning[n] if t.numel() else None) for n, t in results.items()}


@cases(5000)
@given(case=CASES)
def test_values_and_gradients_are_those_of_the_reference(case):
    """For any strides and any inputs that need a gradient."""
    problem, (fused, plain) = case.problem(), case.functions()
    before = {n: t.detach().clone() for n, t in problem.inputs.items() if t is not None}
    for name, (error, eager, bound) in compare(problem, fused, plain).items():
        # Gradients through the statistics of a few pixels are mostly cancellation; test_gates.py checks more pixels.
        if "norm" not in case.name or name == "y":
            assert error <= bound, f"{name}: error {error:.3g} of fused against {eager:.3g} of eager, bound {bound:.3g}"
    for n, t in before.items():
        assert torch.equal(problem.inputs[n], t), f"{n} was written to"
    results = problem.run(fused)
    with torch.inference_mode():
        assert torch.equal(fused(**problem.inputs, relu=problem.relu), results["y"])
    meta = type(problem)({n: on_meta(t) for n, t in problem.inputs.items()}, problem.relu, on_meta(problem.dy))
    assert signature(meta.run(fused)) == signature(results)


@cases(2000)
@given(
    case=CASES,
    values=st.lists(st.sampled_from((float("nan"), ODD_NAN, float("inf"), -float("inf"))), min_size=1, max_size=3),
    places=st.lists(st.integers(0, 2**31), min_size=3, max_size=3),
)
def test_nan_and_inf_are_where_the_reference_has_them(case, values, places):
    problem, (fused, plain) = case.problem(), case.functions()
    x = problem.inputs["x"].detach().contiguous()
    for value, place in zip(values, places, strict=False):
        if x.numel():
            x.view(-1)[place % x.numel()] = value
    problem.inputs["x"] = x.requires_grad_()
    # In some dtypes PyTorch's convolutions spread NaN beyond the window, and gates become 0, which turns Inf into NaN.
    # So only the NaN and Inf that the reference has in both this dtype and float64 count.
    got, eager, exact = problem.run(fused), problem.run(plain), problem.to(torch.float64).run(plain)
    for key, t in got.items():
        for spread in (torch.isnan, lambda t: ~t.isfinite()):
            one, other = spread(eager[key]), spread(exact[key].to(t.dtype))
            assert spread(t)[one & other].all(), key
            if key != "dws":  # the algorithm determines whether zeros of the padding times NaN count
                assert not spread(t)[~(one | other)].any(), key


@cases(3000)
@given(case=CASES, chosen=st.lists(st.tuples(st.sampled_from(NAMES), WRONG), min_size=1, max_size=3))
def test_wrong_arguments_are_named(case, chosen):
    problem, fused = case.problem(), case.functions()[0]
    used = {n: t for n, t in problem.inputs.items() if n in NAMES and t is not None}
    changed = {n: wrong(n, used[n].detach(), *how) for n, how in chosen if n in used} or {"x": None}
    problem.inputs |= changed
    # The other arguments are compared with x, and b1 and w2 with w1 too.
    follow = {"x": NAMES, "w1": ("w1", "w2", "b1")}
    blamed = "|".join(other for n in changed for other in follow.get(n, (n,)))
    with pytest.raises((TypeError, ValueError), match=rf"^({blamed}) must be "):
        fused(**problem.inputs, relu=problem.relu)


@cases(1000)
@given(case=MODULE_CASES)
def test_modules_are_those_of_the_reference(case):
    """Every variant, with other switches, in training and inference."""
    problem, (fused, plain) = case.problem(), (case.function(package) for package in (cbam_fused, reference))
    for name, (error, eager, bound) in compare(problem, fused, plain).items():
        if name == "y" or not case.by_the_batch():
            assert error <= bound, f"{name}: error {error:.3g} of fused against {eager:.3g} of eager, bound {bound:.3g}"
