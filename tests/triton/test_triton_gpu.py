"""The Triton kernels on a GPU: the comparisons of the interpreter at real sizes, graphs, streams, devices.

The truth is computed on the CPU: PyTorch's own backward of the maximum is not deterministic on a GPU.
"""

import os

import pytest
import torch
from gates import FUNCTIONS
from gpu_problem import cuda_problem, on_gpu
from truth import DTYPES, LAYOUTS, assert_close_to_truth, random_problem

from cbam_fused import CBAM, functional
from cbam_fused.ops import registry

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(registry.triton_missing), reason=f"Triton kernels: {registry.triton_missing}"),
]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
gates = pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "both"])


@pytest.fixture(autouse=True)
def triton_on_cuda(monkeypatch):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: the kernels are interpreted in this process, not compiled")
    monkeypatch.setattr("cbam_fused.routing.wanted", "triton")


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
@dtypes
@gates
def test_gates(name, dtype, layout):
    draw, calls = FUNCTIONS[name]
    fused, plain = calls["first"]
    assert_close_to_truth(draw((4, 64, 28, 28), dtype, layout, biases=True), on_gpu(fused), plain)


@layouts
@gates
def test_gates_are_bitwise_reproducible(name, layout):
    draw, calls = FUNCTIONS[name]
    problem = cuda_problem((16, 64, 28, 28), torch.float32, layout, draw=draw, biases=True)
    first, second = (problem.run(calls["first"][0]) for _ in range(2))
    assert all(torch.equal(second[key], first[key]) for key in first)


@layouts
@dtypes
def test_bitwise_reproducible_and_independent_of_groups(dtype, layout, monkeypatch):
    from cbam_fused.triton import call

    problem = cuda_problem((16, 64, 28, 28), dtype, layout, biases=True, residual=True, relu=True)
    results = [problem.run(functional.cbam) for _ in range(3)]
    monkeypatch.setattr(call, "images_per_launch", lambda N, image_bytes, l2_bytes: 3)
    results.append(problem.run(functional.cbam))
    for result in results[1:]:
        for name, t in results[0].items():
            assert torch.equal(result[name], t), name


@layouts
def test_nan_and_ties(layout):
    x = torch.ones(1, 40, 30, 30, device="cuda").to(memory_format=layout)
    x[0, 7, 2, 5] = x[0, 7, 20, 20] = float("nan")
    w1, w2, ws = (torch.rand(size, device="cuda") for size in ((2, 40), (40, 2), (1, 2, 7, 7)))
    _, _, index = registry.operators["triton"].forward(x, w1, w2, ws, None, None, None, None, False, 0)
    assert index[0, 7] == 2 * 30 + 5 and not index[0, :7].any() and not index[0, 8:].any()


@layouts
def test_graph_capture_and_replay(layout):
    """The whole training step of one module, captured after a warm-up on a side stream, on new data."""
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
    for name, t in expected.items():
        assert torch.equal(got[name], t), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_second_device():
    assert torch.cuda.current_device() == 0
    assert_close_to_truth(random_problem((2, 64, 28, 28)), on_gpu(device="cuda:1"))
    assert torch.cuda.current_device() == 0


@layouts
def test_fullgraph(layout):
    problem = cuda_problem((4, 64, 28, 28), torch.float32, layout, biases=True, residual=True, relu=True)
    expected = problem.run(functional.cbam)
    got = problem.run(torch.compile(functional.cbam, fullgraph=True))
    for name, t in expected.items():
        assert torch.equal(got[name], t) and got[name].stride() == t.stride(), name


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
