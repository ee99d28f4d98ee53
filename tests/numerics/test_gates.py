"""A single gate, the masks, BatchNorm with batch statistics, and even ties: values and every gradient.

test_instruction_sets.py runs this file again for each instruction set.
"""

import pytest
import torch
from gates import FUNCTIONS
from truth import DTYPES, LAYOUTS, assert_close_to_truth

from cbam_fused import functional

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
functions = pytest.mark.parametrize("name", FUNCTIONS)
every_tie = pytest.mark.parametrize("ties", ["first", "even"])


@functions
@every_tie
@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, layout, ties, name):
    draw, calls = FUNCTIONS[name]
    assert_close_to_truth(draw((2, 33, 5, 17), dtype, layout, biases=True), *calls[ties])


@functions
@layouts
def test_float32_parameters_with_half_input(layout, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((1, 66, 45, 47), torch.bfloat16, layout, biases=True, params=torch.float32)
    assert_close_to_truth(problem, *calls["first"])


@functions
@every_tie
@layouts
@pytest.mark.parametrize(
    "shape", [(2, 5, 1, 2), (3, 1, 9, 6), (9, 128, 2, 3), (1, 3, 70, 67), (1, 2100, 2, 3)], ids=str
)
def test_one_and_many(shape, layout, ties, name):
    draw, calls = FUNCTIONS[name]
    assert_close_to_truth(draw(shape, torch.float32, layout, hidden=64, kernel_size=3), *calls[ties])


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "mask" not in n])
@every_tie
@layouts
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_epilogue(residual, relu, layout, ties, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((2, 24, 6, 11), torch.bfloat16, layout, biases=True, residual=residual, relu=relu)
    assert_close_to_truth(problem, *calls[ties])


@functions
@every_tie
@layouts
def test_gradcheck(layout, ties, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((2, 3, 3, 2), torch.float64, layout, hidden=2, kernel_size=3, biases=True)
    with torch.no_grad():  # no ties, where the function has no derivative
        x = problem.inputs["x"]
        x.copy_(torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))
    names = [n for n, t in problem.inputs.items() if t is not None]
    absent = {n: None for n, t in problem.inputs.items() if t is None}

    def call(*tensors):
        return calls[ties][0](**dict(zip(names, tensors, strict=True)), **absent, relu=False)

    assert torch.autograd.gradcheck(call, [problem.inputs[n] for n in names])
    assert torch.autograd.gradgradcheck(call, [problem.inputs[n] for n in names])


@functions
@every_tie
@layouts
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_spread_as_in_the_reference(value, layout, ties, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((2, 20, 6, 19), torch.float32, layout, biases=True)
    with torch.no_grad():
        problem.inputs["x"][1, 19, 5, 18] = value
    fused, eager = (problem.run(call) for call in calls[ties])
    for key in eager:
        assert torch.equal(fused[key].isnan(), eager[key].isnan()), key
        assert torch.equal(fused[key].isinf(), eager[key].isinf()), key


@functions
@every_tie
@layouts
def test_bitwise_reproducible_for_any_number_of_threads(layout, ties, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((5, 48, 9, 11), torch.float32, layout, biases=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, before, before):
            torch.set_num_threads(threads)
            results.append(problem.run(calls[ties][0]))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[key], results[0][key]) for key in result)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "norm" not in n])
@layouts
def test_empty_batch(layout, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((0, 8, 5, 5), torch.float32, layout, biases=True)
    fused, plain = (problem.run(call) for call in calls["first"])
    for key, expected in plain.items():
        assert fused[key].shape == expected.shape, key
        torch.testing.assert_close(fused[key], expected, equal_nan=True)


def test_even_ties_share_the_gradient():
    """All pixels are maxima of their channel, and all channels maxima of their pixel."""
    x = torch.ones(1, 4, 3, 5, requires_grad=True)
    w1, w2, ws = torch.ones(1, 4), torch.ones(4, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    for ties, values in (("even", 1), ("first", 4)):
        (dx,) = torch.autograd.grad(functional.cbam(x, w1, w2, ws, ties=ties).sum(), x)
        assert dx.unique().numel() == values, "first: both maxima, one of them, the other, none"


def test_unknown_ties():
    with pytest.raises(ValueError, match="ties must be 'first' or 'even', got 'last'"):
        functional.channel_gate(torch.ones(1, 2, 2, 2), torch.ones(1, 2), torch.ones(2, 1), ties="last")
