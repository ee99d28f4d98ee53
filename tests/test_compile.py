"""The operators as PyTorch's compiler sees them: schemas, fake kernels, full graphs."""

import pytest
import torch
from torch import library
from truth import LAYOUTS, random_problem

from cbam_fused import CBAM, _ops, functional

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def operator_arguments(problem):
    params = [problem.inputs[n] for n in ("w1", "b1", "w2", "b2", "ws", "bs")]
    params = [None if p is None else p.detach().float() for p in params]
    residual = problem.inputs["residual"]
    forward = (problem.inputs["x"].detach(), *params, None if residual is None else residual.detach(), problem.relu)
    y, saved, index = _ops.forward(*forward)
    return forward, (problem.dy, forward[0], y if problem.relu else None, saved, index, *params)


@layouts
@pytest.mark.parametrize("biases,relu", [(False, False), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (0, 6, 5, 7), (2, 1, 5, 7), (2, 6, 1, 1)], ids=str)
def test_opcheck(shape, dtype, biases, relu, layout):
    forward, backward = operator_arguments(
        random_problem(shape, dtype, layout, biases=biases, residual=relu, relu=relu)
    )
    library.opcheck(_ops.forward, forward)
    library.opcheck(_ops.backward, backward)


VIEWS = {
    "sliced": lambda: torch.randn(2, 9, 8, 11)[:, 2:8, :, ::2],
    "sliced channels_last": lambda: torch.randn(2, 9, 8, 11).to(memory_format=torch.channels_last)[:, 2:8],
    "transposed": lambda: torch.randn(2, 6, 8, 11).transpose(2, 3),
    "expanded": lambda: torch.randn(1, 6, 8, 11).expand(2, 6, 8, 11),
}


@pytest.mark.parametrize("view", VIEWS)
def test_opcheck_of_strided_inputs(view):
    x = VIEWS[view]()
    forward, backward = operator_arguments(random_problem(tuple(x.shape), relu=True))
    library.opcheck(_ops.forward, (x, *forward[1:]))
    library.opcheck(_ops.backward, (x, x, *backward[2:]))


@layouts
def test_fullgraph(layout):
    problem = random_problem((2, 16, 9, 8), torch.float32, layout, biases=True, residual=True, relu=True)
    expected = problem.run(functional.cbam)
    got = problem.run(torch.compile(functional.cbam, fullgraph=True))
    for name in expected:
        assert torch.equal(got[name], expected[name]) and got[name].stride() == expected[name].stride(), name


def test_fullgraph_module_in_a_network():
    """Convolutions around it, any batch and image size, training and inference."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), CBAM(16), torch.nn.Conv2d(16, 4, 3))
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    for size in ((2, 3, 12, 12), (3, 3, 17, 14)):
        x = torch.randn(size)
        expected, got = network(x), compiled(x)
        torch.testing.assert_close(got, expected)
        grads = [torch.autograd.grad(y.square().sum(), list(network.parameters())) for y in (expected, got)]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), expected.detach())


def test_export_with_dynamic_batch():
    module = CBAM(16)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (torch.randn(4, 16, 9, 9),), dynamic_shapes={"x": {0: batch}})
    x = torch.randn(7, 16, 9, 9)
    torch.testing.assert_close(program.module()(x), module(x))
