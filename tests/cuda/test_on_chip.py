"""The on-chip schedule of the CUDA kernels, emulated: values against the float64 reference, traffic by formula."""

import pytest
import torch
from emulation import build, driver
from gates import FUNCTIONS
from truth import LAYOUTS, assert_close_to_truth, negative_problem, random_problem

from cbam_fused.ops import registry

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
clusters = pytest.mark.parametrize("cluster", [1, 2])


@pytest.fixture
def emulated(monkeypatch):
    """emulated(cluster): from there on, tensors on the CPU go to the CUDA kernels with so many blocks an image."""

    def use(cluster: int) -> None:
        monkeypatch.setattr("cbam_fused.routing.wanted", "cpu")
        monkeypatch.setitem(registry.operators, "cpu", driver.operators(driver.Plan("on_chip", cluster)))

    return use


@layouts
@dtypes
@clusters
def test_clusters(cluster, dtype, layout, emulated):
    emulated(cluster)
    assert_close_to_truth(random_problem((2, 32, 4, 8), dtype, layout, biases=True))


# Rows that begin between the 16-byte boundaries, and that are no whole words; parts that are not equal; fewer rows than
# groups of threads; more columns than threads.
SHAPES = [
    ((2, 16, 7, 7), 2),
    ((1, 24, 5, 6), 2),
    ((1, 40, 5, 8), 2),
    ((1, 8, 1, 1), 1),
    ((1, 8, 34, 32), 2),
    ((1, 1040, 2, 2), 2),
]


@layouts
@dtypes
@pytest.mark.parametrize("problem", [random_problem, negative_problem], ids=["relu", "negative"])
@pytest.mark.parametrize(("shape", "cluster"), SHAPES, ids=str)
def test_sizes(shape, cluster, problem, dtype, layout, emulated):
    if layout == torch.channels_last and shape[2] * shape[3] == 4:
        cluster = 1
    emulated(cluster)
    assert_close_to_truth(problem(shape, dtype, layout))


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_epilogue(residual, relu, dtype, layout, emulated):
    emulated(2)
    assert_close_to_truth(random_problem((2, 8, 4, 6), dtype, layout, residual=residual, relu=relu))


@layouts
@pytest.mark.parametrize("kernel_size", [1, 3, 9, 13])
def test_kernel_sizes(kernel_size, layout, emulated):
    emulated(2)
    assert_close_to_truth(random_problem((1, 4, 6, 6), torch.float32, layout, kernel_size=kernel_size, biases=True))


@layouts
@pytest.mark.parametrize("hidden", [1, 3, 70, 600])
def test_hidden_widths(hidden, layout, emulated):
    emulated(2)
    assert_close_to_truth(random_problem((1, 64, 3, 4), torch.float32, layout, hidden=hidden, biases=True))


@pytest.mark.parametrize("name", FUNCTIONS)
@layouts
@pytest.mark.parametrize("cluster", [1, 2])
def test_one_gate_masks_and_batch_norm(cluster, layout, name, emulated):
    emulated(cluster)
    draw, calls = FUNCTIONS[name]
    assert_close_to_truth(draw((2, 16, 4, 6), torch.float32, layout, biases=True), *calls["first"])


def _arguments(shape, dtype, layout, relu=False):
    """x, dy, the residual and the parameters."""
    problem = random_problem(shape, dtype, layout, biases=True, residual=True, relu=relu)
    inputs = {n: t.detach() for n, t in problem.inputs.items()}
    params = [inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    return inputs["x"], problem.dy, inputs["residual"], params


@layouts
@pytest.mark.parametrize("cluster", [1, 2])
def test_places_of_the_maxima(cluster, layout):
    """NaN wins, and of equals the first: as the CPU kernels have it."""
    x, _, _, params = _arguments((1, 8, 4, 6), torch.float32, layout)
    x = x.round()
    x[0, 1, 1, 2:4] = float("nan")
    x[0, 2] = float("-inf")
    x[0, 3, 2, 3:] = float("inf")
    _, _, expected = registry.operators["cpu"].forward(x, *params, None, False, 0)
    _, _, index = driver.forward(x, *params, None, False, plan=driver.Plan("on_chip", cluster))
    assert torch.equal(index, expected)


@layouts
@dtypes
def test_order_of_threads_does_not_matter(dtype, layout):
    x, dy, residual, params = _arguments((2, 16, 4, 6), dtype, layout, relu=True)

    def run(seed: int) -> list[torch.Tensor]:
        options = {"plan": driver.Plan("on_chip", 2), "seed": seed}
        y, saved, index = driver.forward(x, *params, residual, True, **options)
        return [y, saved, index, *driver.backward(dy, x, y, saved, index, *params, False, **options)]

    first = run(0)
    for seed in (1, 2, 3):
        for a, b in zip(first, run(seed), strict=True):
            assert torch.equal(a, b)


# Of these, whole sectors belong to every block.
ALIGNED = [((2, 32, 8, 8), 2), ((1, 64, 8, 16), 2), ((1, 32, 14, 16), 1)]


def _moved(launch: driver.Launch) -> dict[str, tuple[int, int]]:
    return {name: (b.read, b.written) for name, b in launch.buffers.items()}


@layouts
@dtypes
@pytest.mark.parametrize(("shape", "cluster"), ALIGNED, ids=str)
@pytest.mark.parametrize("epilogue", [False, True])
def test_bytes_forward(epilogue, shape, cluster, dtype, layout):
    x, _, residual, params = _arguments(shape, dtype, layout)
    N, C, H, W = shape
    R = params[0].shape[0]
    driver.forward(x, *params, residual if epilogue else None, epilogue, plan=driver.Plan("on_chip", cluster))
    (launch,) = driver.traffic()
    # Numbers of 4 bytes. A block reads ws, bs and b1 itself.
    of_block = N * cluster
    small = {
        "w1": (N * R * C, 0),
        "b1": (of_block * R, 0),
        "w2": (N * C * R, 0),
        "b2": (N * C, 0),
        "ws": (of_block * 2 * 49, 0),
        "bs": (of_block, 0),
        "saved": (0, N * (3 * C + 2 * R + 3 * H * W)),
        "index": (0, N * (C + H * W)),
    }
    expected = {name: (4 * read, 4 * written) for name, (read, written) in small.items()}
    large = {"x": (x.nbytes, 0), "y": (0, x.nbytes)} | ({"residual": (x.nbytes, 0)} if epilogue else {})
    assert _moved(launch) == expected | large
    assert launch.efficiency >= 0.95


@layouts
@dtypes
@pytest.mark.parametrize(("shape", "cluster"), ALIGNED, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_bytes_backward(relu, shape, cluster, dtype, layout):
    x, dy, _, params = _arguments(shape, dtype, layout)
    N, C, H, W = shape
    R = params[0].shape[0]
    plan = driver.Plan("on_chip", cluster)
    y, saved, index = driver.forward(x, *params, None, relu, plan=plan)
    driver.backward(dy, x, y if relu else None, saved, index, *params, False, plan=plan)
    launch = driver.traffic()[0]
    # Numbers of 4 bytes. A block reads the gates, maps and places of the whole image, since it needs most of them, and
    # the hidden vectors.
    of_block = N * cluster
    small = {
        "w1": (N * R * C, 0),
        "w2": (N * C * R, 0),
        "ws": (of_block * 2 * 49, 0),
        "saved": (of_block * (C + 2 * R + 3 * H * W), 0),
        "index": (of_block * (C + H * W), 0),
        "partial": (0, N * (C + 3 * R + 2 * 49 + 1)),
    }
    expected = {name: (4 * read, 4 * written) for name, (read, written) in small.items()}
    # What dx has at the maxima is written over it.
    maxima = sum(
        len({(c, p) for c, p in enumerate(places[:C])} | {(c, p) for p, c in enumerate(places[C:])})
        for places in index.tolist()
    )
    large = {"x": (x.nbytes, 0), "dy": (x.nbytes, 0), "dx": (0, x.nbytes + maxima * x.itemsize)}
    if relu:
        large |= {"y": (x.nbytes, 0), "dresidual": (0, x.nbytes)}
    assert _moved(launch) == expected | large
    moved = sum(b.read + b.written for b in launch.buffers.values())
    assert moved >= 0.95 * 32 * (sum(b.sectors for b in launch.buffers.values()) - maxima)


@dtypes
def test_few_bank_conflicts(dtype):
    """Less than one more cycle for a request; where V elements of a row are a thread's, it is three to six."""
    x, dy, _, params = _arguments((1, 32, 28, 28), dtype, torch.contiguous_format)
    plan = driver.Plan("on_chip", 2)
    _, saved, index = driver.forward(x, *params, None, False, plan=plan)
    (forward,) = driver.traffic()
    driver.backward(dy, x, None, saved, index, *params, False, plan=plan)
    for launch in (forward, driver.traffic()[0]):
        assert launch.bank_conflicts < launch.shared_requests, launch


@pytest.mark.parametrize("images", [0, 3])
def test_numbers_of_images(images, emulated):
    emulated(1)
    assert_close_to_truth(random_problem((images, 8, 3, 4), torch.float32))
