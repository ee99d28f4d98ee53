"""The dataflow driver of the CUDA kernels, emulated: the bits of the staged schedule, with any number of blocks."""

from functools import partial

import pytest
import torch
from emulation import build, driver
from gates import FUNCTIONS
from truth import LAYOUTS, assert_close_to_truth, random_problem

from cbam_fused.ops import registry

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)

STAGED = driver.Plan("staged")
# Of several strips and of one, of rows that are aligned and not, of more channels than one block takes through the MLP.
SHAPES = [(5, 8, 20, 31), (3, 32, 8, 8), (2, 33, 5, 7), (6, 528, 3, 5), (1, 1, 1, 1)]


def _step(shape, dtype, layout, plan, parts=(True, True), **options) -> list[torch.Tensor]:
    """All results of the forward, and of the backward behind it."""
    problem = random_problem(shape, dtype, layout, biases=True, residual=True, relu=True)
    inputs = {name: None if t is None else t.detach() for name, t in problem.inputs.items()}
    has_w1, has_ws = parts
    params = [
        inputs[n] if (has_ws if n in ("ws", "bs") else has_w1) else None for n in ("w1", "w2", "ws", "b1", "b2", "bs")
    ]
    y, saved, index = driver.forward(inputs["x"], *params, inputs["residual"], True, plan=plan, **options)
    gradients = driver.backward(problem.dy, inputs["x"], y, saved, index, *params, plan=plan, **options)
    return [y, saved, index, *gradients]


def _assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_those_of_the_staged_schedule(shape, dtype, layout):
    """With 1 block nothing is ever waited for; windows let all groups be under way, some, or as few as can be."""
    expected = _step(shape, dtype, layout, STAGED, check=False)
    for blocks, window in [(1, 1 << 20), (2, 1), (3, 1 << 12), (7, 1 << 14), (16, 1 << 20)]:
        plan = driver.Plan("dataflow", blocks=blocks, window=window)
        _assert_same(_step(shape, dtype, layout, plan, check=False, seed=blocks), expected)


@layouts
@pytest.mark.parametrize("blocks", [1, 3, 16])
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_blocks_wait_for_what_they_need(shape, blocks, layout):
    """Every access is checked for races between blocks, which counters alone order."""
    for seed in range(2):
        plan = driver.Plan("dataflow", blocks=blocks, window=1 << 20 if seed else 1)
        _step(shape, torch.float32, layout, plan, seed=seed)


@layouts
@pytest.mark.parametrize("parts", [(True, False), (False, True), (False, False)], ids=str)
def test_absent_gates(parts, layout):
    expected = _step((3, 24, 5, 8), torch.float32, layout, STAGED, parts)
    for blocks in (1, 5):
        plan = driver.Plan("dataflow", blocks=blocks)
        _assert_same(_step((3, 24, 5, 8), torch.float32, layout, plan, parts, seed=blocks), expected)


@layouts
@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_operators(name, layout, monkeypatch):
    """BatchNorm, masks and gates alone, in this schedule where it serves them."""
    plan = driver.Plan("dataflow", blocks=3)
    planned = {
        n: partial(getattr(driver, n), seed=1, **({} if n == "apply_gates" else {"plan": plan}))
        for n in registry.Operators._fields
    }
    monkeypatch.setattr("cbam_fused.routing.wanted", "cpu")
    monkeypatch.setitem(registry.operators, "cpu", registry.Operators(**planned))
    draw, calls = FUNCTIONS[name]
    assert_close_to_truth(draw((2, 16, 4, 6), torch.float32, layout, biases=True), *calls["first"])


def test_bytes():
    """The launch has the bytes of the staged launches together, and one launch for each direction."""
    shape = (3, 32, 8, 8)
    plan = driver.Plan("dataflow", blocks=5)
    problem = random_problem(shape, torch.float32, torch.contiguous_format, biases=True)
    x, *params = (
        None if (t := problem.inputs[n]) is None else t.detach() for n in ("x", "w1", "w2", "ws", "b1", "b2", "bs")
    )
    _, saved, index = driver.forward(x, *params, None, False, plan=plan)
    (launch,) = driver.traffic()
    assert launch.kernel == "cbam_fwd_dataflow_kernel"
    # Where the maxima were, the word of a channel and the 4 channels of a pixel that held them are read again.
    N, C, H, W = shape
    again = 4 * N * (C + H * W) * x.itemsize
    assert (launch.buffers["x"].read, launch.buffers["y"].written) == (3 * x.nbytes + again, x.nbytes)
    driver.backward(problem.dy, x, None, saved, index, *params, plan=plan)
    (launch,) = driver.traffic()
    assert launch.kernel == "cbam_bwd_dataflow_kernel"
    moved = {name: (launch.buffers[name].read, launch.buffers[name].written) for name in ("x", "dy", "dx")}
    # dx is worked out and written once more at the maxima.
    maxima = sum(
        len({(c, p) for c, p in enumerate(places[:C])} | {(c, p) for p, c in enumerate(places[C:])})
        for places in index.tolist()
    )
    more = maxima * x.itemsize
    assert moved == {"x": (2 * x.nbytes, 0), "dy": (2 * x.nbytes + more, 0), "dx": (0, x.nbytes + more)}
