"""The staged schedule of the CUDA kernels, emulated, against the float64 reference: values and every gradient."""

from functools import partial

import pytest
import torch
from emulation import driver
from gates import FUNCTIONS
from truth import DTYPES, LAYOUTS, assert_close_to_truth, negative_problem, random_problem

from cbam_fused.ops import registry

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
functions = pytest.mark.parametrize("name", FUNCTIONS)


def operators(seed: int = 0) -> registry.Operators:
    plan = driver.Plan("staged")
    planned = {
        name: partial(getattr(driver, name), seed=seed, **({} if name == "apply_gates" else {"plan": plan}))
        for name in registry.Operators._fields
    }
    return registry.Operators(**planned)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """Tensors on the CPU go to the CUDA kernels."""
    monkeypatch.setattr("cbam_fused.routing.wanted", "cpu")
    monkeypatch.setitem(registry.operators, "cpu", operators())


# Rows that are aligned for 16-byte accesses and others, one channel, one pixel, one row, one column.
SHAPES = [
    (3, 16, 8, 8),
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
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_negative_values(shape, dtype, layout):
    assert_close_to_truth(negative_problem(shape, dtype, layout))


# Of several tiles each way in each pass, aligned and not; of more channels than factors lie in shared memory at a time.
@layouts
@dtypes
@pytest.mark.parametrize(
    "shape", [(1, 8, 56, 64), (1, 2, 70, 61), (1, 528, 4, 4), (1, 521, 3, 3), (1, 1100, 2, 2)], ids=str
)
def test_sizes_of_several_tiles(shape, dtype, layout):
    assert_close_to_truth(random_problem(shape, dtype, layout))


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_options(biases, residual, relu, dtype, layout):
    assert_close_to_truth(random_problem((2, 8, 4, 6), dtype, layout, biases=biases, residual=residual, relu=relu))


@layouts
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9, 13])
def test_kernel_sizes(kernel_size, layout):
    assert_close_to_truth(random_problem((1, 4, 6, 5), torch.float32, layout, kernel_size=kernel_size, biases=True))


@pytest.mark.parametrize("hidden", [1, 3, 21, 70, 600])
def test_hidden_widths(hidden):
    assert_close_to_truth(random_problem((2, 300, 3, 3), torch.float32, hidden=hidden, biases=True))


def test_more_images_than_warps():
    assert_close_to_truth(random_problem((11, 4, 2, 2), torch.float32, biases=True))


@functions
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_gate_masks_and_batch_norm(dtype, layout, name):
    draw, calls = FUNCTIONS[name]
    assert_close_to_truth(draw((2, 16, 4, 6), dtype, layout, biases=True), *calls["first"])


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "mask" not in n])
@layouts
def test_epilogue(layout, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((2, 6, 4, 5), torch.bfloat16, layout, biases=True, residual=True, relu=True)
    assert_close_to_truth(problem, *calls["first"])
