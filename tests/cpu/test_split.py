"""Images split among threads: values, and bitwise the same results for one thread and any batch.

test_instruction_sets.py runs this file again for each instruction set.
"""

from contextlib import contextmanager

import pytest
import torch
from gates import FUNCTIONS
from truth import LAYOUTS, Problem, assert_close_to_truth

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
functions = pytest.mark.parametrize("name", FUNCTIONS)
every_tie = pytest.mark.parametrize("ties", ["first", "even"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

# Four times the work that pays for a thread, and several tiles each way: a large map; many channels with large weights.
LARGE_MAP, MANY_CHANNELS = (66, 45, 47), (600, 14, 16)
shapes = pytest.mark.parametrize("shape", [LARGE_MAP, MANY_CHANNELS], ids=str)


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(name, batch, shape, dtype, layout, hidden=112, **options):
    draw, calls = FUNCTIONS[name]
    return draw((batch, *shape), dtype, layout, hidden=hidden, biases=True, **options), calls


def assert_same_for_any_number_of_threads(problem, call):
    with threads(1):
        expected = problem.run(call)
    for count in (2, 3, 8, 16):
        with threads(count):
            got = problem.run(call)
        for key in expected:
            assert torch.equal(got[key], expected[key]), f"{key}, {count} threads"


@functions
@layouts
@pytest.mark.parametrize(
    "dtype,ties", [(torch.float32, "first"), (torch.float32, "even"), (torch.bfloat16, "first")], ids=str
)
@pytest.mark.parametrize("batch,shape", [(1, MANY_CHANNELS), (2, LARGE_MAP)], ids=str)
def test_bitwise_the_same_for_any_number_of_threads(batch, shape, dtype, ties, layout, name):
    problem, calls = draw(name, batch, shape, dtype, layout)
    assert_same_for_any_number_of_threads(problem, calls[ties][0])


@layouts
@dtypes
@shapes
def test_epilogue(shape, dtype, layout):
    for name in ("both", "both, norm"):
        problem, calls = draw(name, 1, shape, dtype, layout, residual=True, relu=True)
        assert_same_for_any_number_of_threads(problem, calls["first"][0])


# More threads than rows of the map, than channels, than either.
@layouts
@every_tie
@pytest.mark.parametrize("shape", [(4, 2, 40000), (5, 260, 260), (66000, 1, 2), (1, 1, 70000)], ids=str)
def test_fewer_rows_than_threads(shape, ties, layout):
    problem, calls = draw("both", 1, shape, torch.float32, layout, hidden=4, kernel_size=3)
    assert_same_for_any_number_of_threads(problem, calls[ties][0])


# In the other functions PyTorch computes a part of the whole batch.
@pytest.mark.parametrize("name", ["both", "channel", "spatial"])
@every_tie
@layouts
@shapes
def test_each_image_on_its_own(shape, layout, ties, name):
    """A split image has the result of the same image in a batch of unsplit images."""
    problem, calls = draw(name, 3, shape, torch.float32, layout)
    call, _ = calls[ties]
    with threads(3):
        together = problem.run(call)
        for n in range(3):
            x = problem.inputs["x"].detach()[n : n + 1].requires_grad_()
            alone = Problem(problem.inputs | {"x": x}, problem.relu, problem.dy[n : n + 1]).run(call)
            for key in ("y", "dx"):
                assert torch.equal(alone[key][0], together[key][n]), key


@functions
@every_tie
@layouts
@shapes
def test_close_to_truth(shape, layout, ties, name):
    problem, calls = draw(name, 1, shape, torch.float32, layout)
    with threads(4):
        assert_close_to_truth(problem, *calls[ties])


@functions
@layouts
def test_close_to_truth_in_half_precision(layout, name):
    problem, calls = draw(name, 1, LARGE_MAP, torch.bfloat16, layout, params=torch.float32)
    with threads(4):
        assert_close_to_truth(problem, *calls["first"])
