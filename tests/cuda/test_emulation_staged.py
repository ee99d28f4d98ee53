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

PLAN = driver.Plan("staged")


def _arguments(shape, dtype, layout, **options):
    problem = random_problem(shape, dtype, layout, biases=True, residual=True, **options)
    inputs = {name: None if t is None else t.detach() for name, t in problem.inputs.items()}
    return inputs["x"], problem.dy, inputs["residual"], [inputs[name] for name in ("w1", "b1", "w2", "b2", "ws", "bs")]


# The kernels that go over x, and how many blocks of each find shared memory on a multiprocessor at a time, also where
# it has least of it; on a T4 two of each do.
PASSES = {
    "cbam_fwd_pool_kernel": 3,
    "cbam_fwd_maps_kernel": 3,
    "cbam_fwd_apply_kernel": 2,
    "cbam_bwd_products_kernel": 2,
    "cbam_bwd_maps_kernel": 2,
    "cbam_bwd_input_kernel": 2,
}
SHARED = min(target.shared for name, target in TARGETS.items() if name != "sm_75")
RESERVED = 1024  # of each block, by the system, from sm_80 on
# Those whose small buffers cannot fill their sectors, with the reason.
EXCEPTIONS = {
    "cbam_fwd_apply_kernel": "the window of the convolution begins at any pixel",
    "cbam_bwd_maps_kernel": "the window of the convolution begins at any pixel",
    "cbam_fwd_mlp_kernel": "what saved has of an image begins anywhere; one bias for each warp",
    "cbam_bwd_mlp_kernel": "an image's part of partial begins anywhere; a window begins at any pixel",
    "cbam_bwd_parameters_kernel": "an image's part of partial begins anywhere; dw2 is written across its rows",
}
FORWARD = ["cbam_fwd_pool_kernel", "cbam_fwd_mlp_kernel", "cbam_fwd_maps_kernel", "cbam_fwd_apply_kernel"]
BACKWARD = [
    "cbam_bwd_products_kernel",
    "cbam_bwd_maps_kernel",
    "cbam_bwd_mlp_kernel",
    "cbam_bwd_input_kernel",
    "cbam_bwd_parameters_kernel",
]


def _passes(
    x: torch.Tensor, again: dict[str, int], scattered: dict[tuple[str, str], int]
) -> dict[str, tuple[float, float]]:
    """How often the tensors of x's shape were read and written by the last call; its accesses waste no sectors.

    again: elements of each tensor that are moved once more, where the maxima were; they are not counted in the result.
    scattered: at most how many sectors such an access by a kernel takes of a tensor. But for those, at least 95 % of
    the sectors' bytes are asked for, of the accesses to each of the tensors and of all accesses of a launch. No others
    meet in a bank of shared memory.
    """
    for launch in driver.traffic():
        assert all(launch.kernel in PASSES for name in LARGE if name in launch.buffers), launch
        counts = [_asked(b, scattered.get((launch.kernel, name), 0)) for name, b in launch.buffers.items()]
        large = [_asked(b, scattered.get((launch.kernel, n), 0)) for n, b in launch.buffers.items() if n in LARGE]
        assert all(moved >= 0.95 * 32 * sectors for moved, sectors in large), launch
        moved, sectors = (sum(count) for count in zip(*counts, strict=True))
        assert moved >= 0.95 * 32 * sectors or launch.kernel in EXCEPTIONS, launch
        conflicts = sum(n for (kernel, _), n in scattered.items() if kernel == launch.kernel)
        assert launch.kernel not in PASSES or launch.bank_conflicts <= conflicts, launch
        assert PASSES.get(launch.kernel, 2) * (launch.shared_bytes + RESERVED) <= SHARED, launch
        assert launch.kernel not in PASSES or 2 * launch.shared_bytes <= TARGETS["sm_75"].shared, launch
    counts = {}
    for name in LARGE:
        if moved := [launch.buffers[name] for launch in driver.traffic() if name in launch.buffers]:
            more = again.get(name, 0) * x.itemsize
            read, written = sum(b.read for b in moved), sum(b.written for b in moved)
            counts[name] = ((read - more * (name != "dx")) / x.nbytes, (written - more * (name == "dx")) / x.nbytes)
    return counts


def _asked(buffer: driver.BufferTraffic, scattered: int) -> tuple[int, int]:
    """Bytes that were asked for, and sectors without so many."""
    return buffer.read + buffer.written, buffer.sectors - scattered


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
    # Where a maximum was, the word or the 4 rows that held it are read again to say. Each pool is one tile here.
    N, C, H, W = shape
    rows, columns = (H * W, C) if layout == torch.channels_last else (C, H * W)
    along, across = FORWARD[0], FORWARD[2]
    if layout == torch.channels_last:
        along, across = across, along
    again = {"x": N * (rows * 16 // x.itemsize + columns * 4)}
    passes = _passes(x, again, {(along, "x"): N * rows, (across, "x"): N * columns * 4})
    assert passes == {"x": (3, 0), "y": (0, 1)} | ({"residual": (1, 0)} if epilogue else {})
    assert [launch.kernel for launch in driver.traffic()] == FORWARD


@layouts
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_bytes_backward(relu, shape, dtype, layout):
    """After a ReLU, the second pass reads the masked dy, which the first one wrote, instead of dy.

    What dx has at the maxima is worked out and written by itself.
    """
    x, dy, _, params = _arguments(shape, dtype, layout)
    y, saved, index = driver.forward(x, *params, None, relu, plan=PLAN)
    driver.backward(dy, x, y if relu else None, saved, index, *params, False, plan=PLAN)
    masked = {"dy": (1, 0), "y": (1, 0), "dresidual": (1, 1)} if relu else {"dy": (2, 0)}
    C, incoming = shape[1], "dresidual" if relu else "dy"
    maxima = sum(
        len({(c, p) for c, p in enumerate(places[:C])} | {(c, p) for p, c in enumerate(places[C:])})
        for places in index.tolist()
    )
    kernel = "cbam_bwd_input_kernel"
    passes = _passes(x, {incoming: maxima, "dx": maxima}, {(kernel, incoming): maxima, (kernel, "dx"): maxima})
    assert passes == {"x": (2, 0), "dx": (0, 1)} | masked
    assert [launch.kernel for launch in driver.traffic()] == BACKWARD


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
