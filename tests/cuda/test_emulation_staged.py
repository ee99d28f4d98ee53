"""The staged schedule of the CUDA kernels, emulated: how often each tensor of x's size is moved, and in which order
threads may run."""

import pytest
import torch
from cuda_targets import TARGETS
from emulation import build, driver
from truth import DTYPES, LAYOUTS, random_problem

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

PLAN = driver.Plan("staged", images=2)


def _arguments(shape, dtype, layout, **options):
    problem = random_problem(shape, dtype, layout, biases=True, residual=True, **options)
    inputs = {name: None if t is None else t.detach() for name, t in problem.inputs.items()}
    return inputs["x"], problem.dy, inputs["residual"], [inputs[name] for name in ("w1", "w2", "ws", "b1", "b2", "bs")]


# The kernels that go over x, and how many blocks of each find shared memory on a multiprocessor at a time, also where
# it has least of it; on a T4 two of each do.
PASSES = {"reduce_along": 3, "reduce_across": 3, "scale": 2, "products": 2, "input_gradient": 2}
SHARED = min(target.shared for name, target in TARGETS.items() if name != "sm_75")
RESERVED = 1024  # of each block, by the system, from sm_80 on
# Those whose small buffers cannot fill their sectors, with the reason.
EXCEPTIONS = {
    "hidden_layer": "what saved has of an image begins anywhere; one bias for each warp",
    "channel_gate": "lanes of different channels share the hidden units",
    "hidden_backward": "an image's part of partial begins anywhere",
    "pools_backward": "all lanes share the hidden units",
    "spatial_gate": "a window begins at any pixel; all lanes share a weight",
    "map_gradients": "a window begins at any pixel; all lanes share a weight",
    "kernel_gradients": "a window begins at any pixel",
    "weight_gradients": "an image's part of partial begins anywhere; dw2 is written across its rows",
    "column_sums": "an image's part of partial begins anywhere; gradients of a few numbers",
}


def _passes(x: torch.Tensor) -> dict[str, tuple[float, float]]:
    """How often the tensors of x's shape were read and written by the last call; its accesses waste no sectors.

    Of all accesses of a launch to global memory, at least 95 % of the sectors' bytes are asked for.
    """
    for launch in driver.traffic():
        assert launch.efficiency >= 0.95 or launch.kernel in EXCEPTIONS, launch
        assert not (launch.kernel in PASSES and launch.bank_conflicts), launch
        assert all(launch.kernel in PASSES for name in LARGE if name in launch.buffers), launch
        assert PASSES.get(launch.kernel, 2) * (launch.shared_bytes + RESERVED) <= SHARED, launch
        assert launch.kernel not in PASSES or 2 * launch.shared_bytes <= TARGETS["sm_75"].shared, launch
    return {
        name: (sum(b.read for b in moved) / x.nbytes, sum(b.written for b in moved) / x.nbytes)
        for name in LARGE
        if (moved := [launch.buffers[name] for launch in driver.traffic() if name in launch.buffers])
    }


LARGE = ("x", "residual", "y", "dy", "dx", "dresidual")
# Rows begin at sectors in both layouts.
SHAPES = [(3, 32, 8, 8), (1, 64, 14, 16)]


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("epilogue", [False, True])
def test_bytes_forward(epilogue, shape, dtype, layout):
    x, _, residual, params = _arguments(shape, dtype, layout)
    driver.forward(x, *params, residual if epilogue else None, epilogue, plan=PLAN)
    assert _passes(x) == {"x": (3, 0), "y": (0, 1)} | ({"residual": (1, 0)} if epilogue else {})


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_bytes_backward(relu, shape, dtype, layout):
    """After a ReLU, the second pass reads the masked dy, which the first one wrote, instead of dy."""
    x, dy, _, params = _arguments(shape, dtype, layout)
    y, saved, index = driver.forward(x, *params, None, relu, plan=PLAN)
    driver.backward(dy, x, y if relu else None, saved, index, *params, False, plan=PLAN)
    masked = {"dy": (1, 0), "y": (1, 0), "dresidual": (1, 1)} if relu else {"dy": (2, 0)}
    assert _passes(x) == {"x": (2, 0), "dx": (0, 1)} | masked


@layouts
@dtypes
def test_order_of_threads_does_not_matter(dtype, layout):
    x, dy, residual, params = _arguments((3, 16, 4, 6), dtype, layout, relu=True)

    def run(seed: int) -> list[torch.Tensor]:
        options = {"plan": PLAN, "seed": seed}
        y, saved, index = driver.forward(x, *params, residual, True, **options)
        return [y, saved, index, *driver.backward(dy, x, y, saved, index, *params, False, **options)]

    first = run(0)
    for seed in (1, 2, 3):
        for a, b in zip(first, run(seed), strict=True):
            assert torch.equal(a, b)
