"""The Triton kernels, interpreted and watched, against the float64 reference: values and every gradient."""

import pytest
import torch
from truth import DTYPES, LAYOUTS, assert_close_to_truth, errors, negative_problem, random_problem

from cbam_fused import functional, reference

pytestmark = [
    pytest.mark.usefixtures("checker"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),  # NumPy's, of the interpreter
]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Aligned and odd sizes, one channel, one pixel, one row, one column, more channels or pixels than a tile has.
SHAPES = [
    (2, 16, 8, 8),
    (1, 33, 5, 7),
    (2, 1, 4, 3),
    (2, 5, 1, 1),
    (1, 1, 1, 1),
    (1, 3, 1, 19),
    (1, 6, 13, 1),
]


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(shape, dtype, layout):
    assert_close_to_truth(random_problem(shape, dtype, layout))


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_negative_values(shape, dtype, layout):
    assert_close_to_truth(negative_problem(shape, dtype, layout))


@layouts
@pytest.mark.parametrize("shape", [(1, 2, 70, 61), (1, 520, 3, 3), (1, 68, 18, 17)], ids=str)
def test_sizes_of_several_tiles_and_runs(shape, layout):
    assert_close_to_truth(random_problem(shape, torch.float32, layout))


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_options(biases, residual, relu, dtype, layout):
    assert_close_to_truth(random_problem((2, 6, 4, 5), dtype, layout, biases=biases, residual=residual, relu=relu))


@layouts
@pytest.mark.parametrize("kernel_size", [1, 3, 9, 13])
def test_kernel_sizes(kernel_size, layout):
    assert_close_to_truth(random_problem((1, 4, 6, 5), torch.float32, layout, kernel_size=kernel_size, biases=True))


@pytest.mark.parametrize("hidden", [1, 3, 21])
def test_hidden_widths(hidden):
    assert_close_to_truth(random_problem((2, 12, 3, 3), torch.float32, hidden=hidden, biases=True))


def test_more_images_than_are_summed_at_a_time():
    assert_close_to_truth(random_problem((11, 4, 2, 2), torch.float32, biases=True))


@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_parameters_with_half_input(dtype, layout):
    problem = random_problem((2, 8, 5, 5), dtype, layout, params=torch.float32, biases=True, residual=True)
    results = problem.run(functional.cbam)
    assert results["y"].dtype == results["dx"].dtype == dtype
    assert all(results[f"d{n}"].dtype == torch.float32 for n in ("w1", "w2", "ws", "b1", "b2", "bs"))
    assert_close_to_truth(problem)


@layouts
def test_large_values_in_half_precision(layout):
    """Sums of values near 65504 overflow float16, in which eager gets NaN, but not the float32 that ours are in."""
    problem = random_problem((1, 8, 6, 6), torch.float16, layout, scale=30000, params=torch.float32)
    assert problem.inputs["x"].max() > 60000
    with torch.no_grad():  # gates that are not saturated
        for name in ("w1", "ws"):
            problem.inputs[name] /= 20000
    truth = problem.to(torch.float64).run(reference.cbam)
    got = problem.run(functional.cbam)
    assert all(t.isfinite().all() for t in got.values())
    for name, error in errors(got, truth).items():
        assert error <= 4 * torch.finfo(torch.float16).eps * truth[name].abs().max(), name


@layouts
@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(relu, layout):
    """In float64, away from ties and from the corners of the ReLU."""
    rng = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    x, residual = (draw(1, 3, 2, 3).to(memory_format=layout).requires_grad_() for _ in range(2))
    params = [draw(*size).requires_grad_() for size in ((2, 3), (3, 2), (1, 2, 3, 3), (2,), (3,), (1,))]
    assert torch.autograd.gradcheck(
        lambda *args: functional.cbam(*args[:-1], residual=args[-1], relu=relu), (x, *params, residual), fast_mode=True
    )
