"""The CUDA kernels on a GPU: values at real sizes, each schedule, graphs, streams, devices.

The truth is computed on the CPU: PyTorch's own backward of the maximum is not deterministic on a GPU.
"""

from itertools import product

import pytest
import torch
from gates import FUNCTIONS, SWITCHES, switched
from gpu_problem import cuda_problem, on_gpu
from truth import DTYPES, LAYOUTS, assert_close_to_truth, random_problem

from cbam_fused import CBAM, functional
from cbam_fused.ops import registry
from cbam_fused.variants.config import Switches

unserved = registry.cuda_unserved(torch.device("cuda"))
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(unserved), reason=f"CUDA kernels: {unserved}")]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SCHEDULES = ("auto", "staged", "dataflow", "1", "2")


@pytest.fixture(autouse=True)
def cuda_kernels(monkeypatch):
    monkeypatch.setattr("cbam_fused.routing.wanted", "cuda")
    monkeypatch.delenv("CBAM_FUSED_CUDA_SCHEDULE", raising=False)


def assert_same_bits(got, expected):
    for name, t in expected.items():
        assert torch.equal(got[name], t) and got[name].stride() == t.stride(), name


@layouts
@dtypes
@pytest.mark.parametrize(
    "shape",
    [
        (4, 64, 56, 56),
        (8, 512, 7, 7),
        (2, 2048, 7, 7),
        (2, 128, 28, 28),
        (2, 256, 14, 14),
        (1, 64, 112, 112),
        (3, 33, 17, 29),
        (2, 1, 5, 3),
        (2, 5, 1, 1),
        (0, 8, 4, 4),
    ],
    ids=str,
)
def test_sizes(shape, dtype, layout):
    assert_close_to_truth(random_problem(shape, dtype, layout, hidden=max(1, shape[1] // 16)), on_gpu())


@layouts
@dtypes
@pytest.mark.parametrize("biases,residual,relu", [(True, False, False), (False, True, False), (True, True, True)])
def test_options(biases, residual, relu, dtype, layout):
    options = {"biases": biases, "residual": residual, "relu": relu}
    assert_close_to_truth(random_problem((4, 64, 28, 28), dtype, layout, **options), on_gpu())


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule, dtype, layout, monkeypatch):
    """Each that the device allows; a number of blocks that it need not have it may refuse by name."""
    monkeypatch.setenv("CBAM_FUSED_CUDA_SCHEDULE", schedule)
    # Small enough for one block of 99 KB of shared memory, as 8.6, 8.9 and 12.0 have it, in float32 too.
    problem = random_problem((3, 64, 12, 12), dtype, layout, biases=True, residual=True, relu=True)
    # CUDA C++ Programming Guide, "Thread Block Clusters": from 9.0 on, for GPU and code.
    with_clusters = tuple(a for a in registry.cuda_architectures if float(a.removesuffix("+PTX")) >= 9)
    clusters = registry.runs(with_clusters, *torch.cuda.get_device_capability())
    try:
        assert_close_to_truth(problem, on_gpu())
    except ValueError as refusal:
        if schedule != "2" or clusters:
            raise
        assert "CBAM_FUSED_CUDA_SCHEDULE=2: there are no clusters of blocks" in str(refusal)


def test_an_unknown_schedule_is_refused(monkeypatch):
    monkeypatch.setenv("CBAM_FUSED_CUDA_SCHEDULE", "fast")
    with pytest.raises(
        ValueError, match="CBAM_FUSED_CUDA_SCHEDULE=fast: must be auto, staged, dataflow or a number of blocks"
    ):
        random_problem((1, 8, 4, 4)).run(on_gpu())


@layouts
@dtypes
@pytest.mark.parametrize("name,ties", [c for c in product(FUNCTIONS, ("first", "even")) if c != ("both", "first")])
def test_gates(name, ties, dtype, layout):
    draw, calls = FUNCTIONS[name]
    fused, plain = calls[ties]
    assert_close_to_truth(draw((4, 64, 28, 28), dtype, layout, biases=True), on_gpu(fused), plain)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ties", ["first", "even"])
@pytest.mark.parametrize("gates", ["both", "channel"])
@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name, gates, ties, dtype, layout):
    draw, (fused, plain) = switched(gates, Switches(ties=ties, **SWITCHES[name]))
    assert_close_to_truth(draw((4, 64, 28, 28), dtype, layout, biases=True), on_gpu(fused), plain)


@layouts
@dtypes
def test_misaligned_tensors(dtype, layout):
    """A view that starts one element behind a 16-byte boundary."""

    def shifted(x, **rest):
        room = torch.empty(x.numel() + 1, device=x.device, dtype=x.dtype)
        return functional.cbam(room[1:].as_strided(x.shape, x.stride()).copy_(x), **rest)

    assert_close_to_truth(random_problem((2, 16, 8, 8), dtype, layout), on_gpu(shifted))


@layouts
@dtypes
@pytest.mark.parametrize("shape", [(16, 64, 28, 28), (300, 32, 8, 8)], ids=str)
def test_bitwise_reproducible(shape, dtype, layout):
    problem = cuda_problem(shape, dtype, layout, biases=True, residual=True, relu=True)
    first = problem.run(functional.cbam)
    for _ in range(3):
        assert_same_bits(problem.run(functional.cbam), first)


@layouts
def test_nan_and_ties(layout):
    x = torch.ones(1, 40, 30, 30, device="cuda").to(memory_format=layout)
    x[0, 7, 2, 5] = x[0, 7, 20, 20] = float("nan")
    w1, w2, ws = (torch.rand(size, device="cuda") for size in ((2, 40), (40, 2), (1, 2, 7, 7)))
    _, _, index = registry.operators["cuda"].forward(x, w1, w2, ws, None, None, None, None, False, 0)
    assert index[0, 7] == 2 * 30 + 5 and not index[0, :7].any() and not index[0, 8:].any()


@layouts
@pytest.mark.parametrize("schedule", ["auto", "staged", "dataflow"])
def test_graph_capture_and_replay(schedule, layout, monkeypatch):
    """The whole training step of one module, captured after a warm-up on a side stream, on new data."""
    monkeypatch.setenv("CBAM_FUSED_CUDA_SCHEDULE", schedule)
    module = CBAM(64).cuda().to(memory_format=layout)
    x = torch.randn(4, 64, 28, 28, device="cuda").to(memory_format=layout).requires_grad_()
    dy = torch.randn_like(x)

    def step():
        y = module(x)
        return (y, *torch.autograd.grad(y, [x, *module.parameters()], dy))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert torch.equal(got, expected)


def test_side_stream():
    """Work that a busy stream has not done yet is waited for, and only by that stream."""
    problem = cuda_problem((8, 64, 56, 56))
    expected = problem.run(functional.cbam)
    source = problem.inputs["x"].detach().clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        problem.inputs["x"].zero_()
        torch.cuda._sleep(50_000_000)
        problem.inputs["x"].copy_(source)
    with torch.cuda.stream(stream):
        got = problem.run(functional.cbam)
    stream.synchronize()
    assert_same_bits(got, expected)


def test_nothing_waits_for_the_gpu():
    problem = cuda_problem((8, 64, 28, 28), residual=True, relu=True)
    problem.run(functional.cbam)
    torch.cuda.set_sync_debug_mode("error")
    try:
        problem.run(functional.cbam)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_second_device():
    assert torch.cuda.current_device() == 0
    assert_close_to_truth(random_problem((2, 64, 28, 28)), on_gpu(device="cuda:1"))
    assert torch.cuda.current_device() == 0


@layouts
def test_fullgraph(layout):
    problem = cuda_problem((4, 64, 28, 28), torch.float32, layout, biases=True, residual=True, relu=True)
    expected = problem.run(functional.cbam)
    assert_same_bits(problem.run(torch.compile(functional.cbam, fullgraph=True)), expected)


@layouts
@pytest.mark.parametrize("shape", [(70_000, 2, 2, 4), (2_200_000, 1, 1, 4)], ids=str)
def test_many_images(shape, layout):
    """More images and planes than the 65,535 blocks of a grid's y and z."""
    x = torch.randn(shape, device="cuda").to(memory_format=layout)
    w1, w2, ws = (torch.randn(size, device="cuda") for size in ((1, shape[1]), (shape[1], 1), (1, 2, 7, 7)))
    y = functional.cbam(x, w1, w2, ws)
    for part in (slice(0, 4), slice(-4, None)):
        assert torch.equal(y[part], functional.cbam(x[part], w1, w2, ws))


@layouts
@pytest.mark.slow  # 15 GB of GPU memory
def test_more_than_2_to_the_31_elements(layout):
    """The last image of a batch whose addresses do not fit in 32 bits."""
    x = torch.empty(43, 256, 448, 448, dtype=torch.float16, device="cuda", memory_format=layout).zero_()
    assert x.numel() > 2**31
    last = torch.randn(1, 256, 448, 448, device="cuda", dtype=torch.float16).to(memory_format=layout)
    x[-1:] = last
    w1, w2, ws = (torch.randn(size, device="cuda") / 8 for size in ((16, 256), (256, 16), (1, 2, 7, 7)))
    expected = functional.cbam(last, w1, w2, ws)
    y = functional.cbam(x, w1, w2, ws)
    assert torch.equal(y[-1:], expected)
    assert not y[:-1].any()
