"""Values and every gradient against the float64 reference, for dtypes, layouts, sizes and options.

test_instruction_sets.py runs this file again for each instruction set.
"""

import pytest
import torch
from truth import DTYPES, LAYOUTS, assert_close_to_truth, errors, negative_problem, random_problem

from cbam_fused import functional, reference

HALVES = (torch.float16, torch.bfloat16)

# Tails of every vector width, one channel, one pixel, single rows and columns, more columns than a chunk.
SHAPES = [
    (2, 64, 14, 14),
    (3, 16, 7, 7),
    (2, 33, 5, 17),
    (3, 1, 9, 6),
    (2, 5, 1, 1),
    (1, 1, 1, 1),
    (2, 8, 1, 19),
    (1, 70, 23, 1),
    (1, 3, 50, 47),
    (5, 2, 3, 2),
    (1, 2100, 2, 3),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(shape, dtype, layout):
    assert_close_to_truth(random_problem(shape, dtype, layout))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_negative_values(shape, dtype, layout):
    assert_close_to_truth(negative_problem(shape, dtype, layout))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_options(biases, residual, relu, dtype, layout):
    assert_close_to_truth(random_problem((2, 24, 6, 11), dtype, layout, biases=biases, residual=residual, relu=relu))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9, 13, 49])
def test_kernel_sizes(kernel_size, layout):
    assert_close_to_truth(random_problem((2, 10, 12, 9), torch.float32, layout, kernel_size=kernel_size, biases=True))


@pytest.mark.parametrize("hidden", [1, 3, 16, 21, 70])
def test_hidden_widths(hidden):
    assert_close_to_truth(random_problem((3, 40, 5, 5), torch.float32, hidden=hidden, biases=True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_float32_parameters_with_half_input(dtype, layout):
    problem = random_problem((2, 32, 9, 9), dtype, layout, params=torch.float32, biases=True, residual=True)
    results = problem.run(functional.cbam)
    assert results["y"].dtype == results["dx"].dtype == dtype
    assert all(results[f"d{n}"].dtype == torch.float32 for n in ("w1", "w2", "ws", "b1", "b2", "bs"))
    assert_close_to_truth(problem)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_many_images_per_group(dtype, layout):
    """More weights than pixels: images go through the MLP in groups, the last one shorter."""
    assert_close_to_truth(random_problem((11, 128, 2, 3), dtype, layout, hidden=64, biases=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_large_values_in_half_precision(layout):
    """Sums of values near 65504 overflow float16, where eager returns NaN, but not float32, which the kernels use."""
    problem = random_problem((2, 16, 20, 20), torch.float16, layout, scale=16000, params=torch.float32)
    assert problem.inputs["x"].max() > 60000
    truth = problem.to(torch.float64).run(reference.cbam)
    got = problem.run(functional.cbam)
    assert all(t.isfinite().all() for t in got.values())
    for name, error in errors(got, truth).items():
        # Logits of 1e4 have an error of 1e-3 in float32, which affects the gradients of the parameters.
        tolerance = 1 if name in ("y", "dx") else 4
        assert error <= tolerance * torch.finfo(torch.float16).eps * truth[name].abs().max(), name
