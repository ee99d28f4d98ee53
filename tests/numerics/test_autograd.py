"""Derivatives of every kind: correct, or by the reference, never silently zero."""

import pytest
import torch
from torch.autograd import forward_ad
from truth import LAYOUTS, random_problem

from cbam_fused import functional, reference

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def smooth_problem(layout, **options):
    """float64 without ties, so the function is smooth for finite differences; small, since there are many."""
    shape = (2, 3, 3, 2)
    problem = random_problem(shape, torch.float64, layout, hidden=2, kernel_size=3, biases=True, **options)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problem.inputs["x"] = x.contiguous(memory_format=layout).requires_grad_()
    return problem


def as_function(problem):
    names = [n for n, t in problem.inputs.items() if t is not None]

    def cbam(*tensors):
        return functional.cbam(**dict(zip(names, tensors, strict=True)), relu=problem.relu)

    return cbam, [problem.inputs[n] for n in names]


@layouts
@pytest.mark.parametrize("epilogue", [False, True])
def test_gradcheck(epilogue, layout):
    assert torch.autograd.gradcheck(*as_function(smooth_problem(layout, residual=epilogue, relu=epilogue)))


@layouts
@pytest.mark.parametrize("epilogue", [False, True])
def test_gradgradcheck(epilogue, layout):
    assert torch.autograd.gradgradcheck(*as_function(smooth_problem(layout, residual=epilogue, relu=epilogue)))


def test_double_backward_equals_the_reference():
    problem = smooth_problem(torch.contiguous_format)

    def penalty(cbam):
        (dx,) = torch.autograd.grad(cbam(**problem.inputs).square().sum(), problem.inputs["x"], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [t for t in problem.inputs.values() if t is not None])

    for got, expected in zip(penalty(functional.cbam), penalty(reference.cbam), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected)


TIED = {
    "one weight": lambda x, w, ws, b: (w, w, ws, b, b),
    "a transpose": lambda x, w, ws, b: (w, w.t(), ws, b, b * 2),
    "of x": lambda x, w, ws, b: (w, w * x.mean(), ws * x.amax(), b, b),
}


@pytest.mark.parametrize("tie", TIED)
@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("norm", [None, torch.nn.BatchNorm2d(1).double()], ids=["", "batch norm"])
def test_double_backward_of_inputs_that_depend_on_each_other(norm, epilogue, tie):
    torch.manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((2, 4, 3, 2), (4, 4), (1, 2, 3, 3), (4,))]

    def grads(cbam):
        x, *parameters = leaves
        w1, w2, ws, b1, b2 = TIED[tie](x, *parameters)
        y = cbam(x, w1, w2, ws, b1, b2, norm=norm, residual=x if epilogue else None, relu=epilogue)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for got, expected in zip(grads(functional.cbam), grads(reference.cbam), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("part", ["cbam", "channel_gate", "spatial_gate", "batch norm"])
def test_tangent_of_a_backward(part):
    """Forward mode of a gradient after its forward."""
    inputs = smooth_problem(torch.contiguous_format).inputs
    x, w1, w2, ws = (inputs[n] for n in ("x", "w1", "w2", "ws"))
    norm = torch.nn.BatchNorm2d(1).double()
    calls = {
        "cbam": lambda module: module.cbam(x, w1, w2, ws),
        "channel_gate": lambda module: module.channel_gate(x, w1, w2),
        "spatial_gate": lambda module: module.spatial_gate(x, ws),
        "batch norm": lambda module: module.cbam(x, w1, w2, ws, norm=norm),
    }

    def tangents(module):
        y = calls[part](module)
        v, t = torch.linspace(-1, 1, y.numel()).to(y).view_as(y), torch.linspace(1, 2, y.numel()).to(y).view_as(y)
        with forward_ad.dual_level():
            (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(v, t), retain_graph=True)
            of_dual = forward_ad.unpack_dual(dx).tangent
        of_jvp = torch.func.jvp(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0], (v,), (t,))[1]
        return of_dual, of_jvp

    (dual, jvp), expected = tangents(functional), tangents(reference)
    assert expected[0].abs().max() > 0
    torch.testing.assert_close((dual, jvp), expected)


def test_double_backward_within_hooks_of_saved_tensors():
    inputs = smooth_problem(torch.contiguous_format).inputs
    x = inputs["x"]

    def penalty():
        y = functional.cbam(**inputs)
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].square().sum()

    with torch.autograd.graph.save_on_cpu():
        kept = penalty()
    checkpointed = torch.utils.checkpoint.checkpoint(penalty, use_reentrant=False)
    expected = torch.autograd.grad(penalty(), x)
    for loss in (kept, checkpointed):
        torch.testing.assert_close(torch.autograd.grad(loss, x), expected)


def test_batched_gradients_with_a_graph():
    problem = smooth_problem(torch.contiguous_format)
    x = problem.inputs["x"]
    directions = torch.eye(x.numel(), dtype=x.dtype)[::5].view(-1, *x.shape)

    def second(cbam):
        y = cbam(**problem.inputs)
        (dx,) = torch.autograd.grad(y, x, directions, is_grads_batched=True, create_graph=True)
        return dx, *torch.autograd.grad(dx.square().sum(), [x, problem.inputs["w1"]])

    torch.testing.assert_close(second(functional.cbam), second(reference.cbam))


def test_forward_mode_equals_the_reference():
    x, w1, w2, ws = (smooth_problem(torch.contiguous_format).inputs[n].detach() for n in ("x", "w1", "w2", "ws"))
    tangent = torch.ones_like(x)

    def pushed(cbam):
        with torch.autograd.forward_ad.dual_level():
            y = cbam(torch.autograd.forward_ad.make_dual(x, tangent), w1, w2, ws)
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    assert pushed(functional.cbam).abs().max() > 0
    torch.testing.assert_close(pushed(functional.cbam), pushed(reference.cbam))
    _, jvp = torch.func.jvp(lambda x: functional.cbam(x, w1, w2, ws), (x,), (tangent,))
    torch.testing.assert_close(jvp, pushed(reference.cbam))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functorch_equals_the_reference():
    x, w1, w2, ws = (smooth_problem(torch.contiguous_format).inputs[n].detach() for n in ("x", "w1", "w2", "ws"))

    def loss(cbam):
        return lambda x, w1: cbam(x, w1, w2, ws).square().sum()

    transforms = {
        "grad": lambda f: torch.func.grad(f, argnums=(0, 1))(x, w1),
        "vmap of grad": lambda f: torch.vmap(torch.func.grad(f, argnums=(0, 1)), in_dims=(0, None))(x[:, None], w1),
        "jacrev": lambda f: torch.func.jacrev(torch.func.grad(f, argnums=1), argnums=1)(x, w1),
    }
    for name, transform in transforms.items():
        got, expected = transform(loss(functional.cbam)), transform(loss(reference.cbam))
        torch.testing.assert_close(got, expected, msg=name)


@pytest.mark.parametrize("wanted", ["x", "w1", "w2", "ws", "b1", "b2", "bs", "residual"])
def test_one_input_alone(wanted):
    problem = random_problem((2, 6, 4, 4), biases=True, residual=True, relu=True)
    expected = problem.run(functional.cbam)[f"d{wanted}"]
    inputs = {n: t.detach().requires_grad_(n == wanted) for n, t in problem.inputs.items()}
    functional.cbam(**inputs, relu=True).backward(problem.dy)
    assert torch.equal(inputs[wanted].grad, expected)
    assert all(t.grad is None for n, t in inputs.items() if n != wanted)


def test_no_graph_without_need():
    problem = random_problem((2, 6, 4, 4))
    with torch.no_grad():
        assert functional.cbam(**problem.inputs).grad_fn is None
    frozen = {n: None if t is None else t.detach() for n, t in problem.inputs.items()}
    assert functional.cbam(**frozen).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(functional.cbam(**frozen), functional.cbam(**problem.inputs).detach())


def test_gradients_accumulate_and_graphs_are_kept():
    problem = random_problem((2, 6, 4, 4))
    x = problem.inputs["x"]
    y = functional.cbam(**problem.inputs)
    y.backward(problem.dy, retain_graph=True)
    once = x.grad.clone()
    y.backward(problem.dy)
    assert torch.equal(x.grad, 2 * once)


def test_saved_tensors_are_guarded():
    """Changing x between forward and backward raises PyTorch's usual error."""
    problem = random_problem((2, 6, 4, 4))
    x = problem.inputs["x"].detach().clone().requires_grad_()
    shifted = x + 0
    y = functional.cbam(**problem.inputs | {"x": shifted})
    shifted.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_saves_little_more_than_x():
    """x and y are shared with the surrounding graph; all other saved tensors are small."""
    problem = random_problem((4, 64, 28, 28))
    kept = {}

    def note(t):
        kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        functional.cbam(**problem.inputs)
    x = problem.inputs["x"]
    assert sum(kept.values()) <= 1.1 * x.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activation_checkpointing(dtype):
    problem = random_problem((2, 6, 4, 4), dtype)

    def checkpointed(relu, **inputs):
        return torch.utils.checkpoint.checkpoint(lambda: functional.cbam(**inputs, relu=relu), use_reentrant=False)

    expected, got = problem.run(functional.cbam), problem.run(checkpointed)
    assert all(torch.equal(got[n], expected[n]) for n in expected)
