"""BatchNorm of the spatial logits: folding and updates of running statistics; test_gates.py has the rest."""

import copy

import pytest
import torch
from torch import nn
from truth import LAYOUTS, errors, random_problem

from cbam_fused import functional, reference, routing

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def batch_norm(dtype, affine=True, **options):
    norm = nn.BatchNorm2d(1, affine=affine, **options)
    with torch.no_grad():
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(1.7)
        for p, value in zip(norm.parameters(), (1.4, -0.2), strict=False):
            p.fill_(value)
    return norm.to(dtype)


def run(cbam, problem, norm):
    """y and all gradients, including those of BatchNorm's parameters."""
    leaves = {n: t for n, t in problem.inputs.items() if t is not None} | dict(norm.named_parameters())
    y = cbam(**problem.inputs, norm=norm, relu=problem.relu)
    grads = torch.autograd.grad(y, list(leaves.values()), problem.dy)
    return {"y": y.detach()} | {f"d{n}": g for n, g in zip(leaves, grads, strict=True)}


@layouts
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_running_statistics_are_folded(dtype, affine, layout):
    problem = random_problem((3, 20, 9, 11), dtype, layout, biases=True, residual=True, relu=True)
    norm = batch_norm(dtype, affine).eval()
    exact = problem.to(torch.float64)
    truth = run(reference.cbam, exact, copy.deepcopy(norm).double())
    eager, got = run(reference.cbam, problem, norm), run(functional.cbam, problem, norm)
    fused_error, eager_error = errors(got, truth), errors(eager, truth)
    eps = torch.finfo(dtype).eps
    for name, t in truth.items():
        floor = 16 * eps * max(1.0, t.abs().max().item())
        assert fused_error[name] <= 2 * eager_error[name] + floor, name


@layouts
def test_gradients_of_the_fold(layout):
    problem = random_problem((2, 5, 4, 3), torch.float64, layout, biases=True, kernel_size=3)
    norm = batch_norm(torch.float64).eval()
    tensors = [t for t in problem.inputs.values() if t is not None] + list(norm.parameters())
    names = [n for n, t in problem.inputs.items() if t is not None]

    def call(*values):  # gradcheck changes the parameters of norm in place
        return functional.cbam(**dict(zip(names, values, strict=False)), norm=norm)

    # Distinct values, so no argmax changes within the steps of the check.
    with torch.no_grad():
        x = problem.inputs["x"]
        x.copy_(torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0)).view(x.shape) / 20)
    assert torch.autograd.gradcheck(call, tensors)


@layouts
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_as_in_pytorch(momentum, layout):
    problem = random_problem((3, 20, 9, 11), torch.float64, layout)
    fused, plain = (batch_norm(torch.float64, momentum=momentum) for _ in range(2))
    for _ in range(2):
        run(functional.cbam, problem, fused)
        run(reference.cbam, problem, plain)
    assert fused.num_batches_tracked == 2
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], expected, msg=name)


def test_no_statistics_to_move():
    problem = random_problem((2, 8, 5, 5), torch.float64)
    for norm in (nn.BatchNorm2d(1, track_running_stats=False).eval(), nn.BatchNorm2d(1, track_running_stats=False)):
        got, expected = (run(cbam, problem, norm.double()) for cbam in (functional.cbam, reference.cbam))
        torch.testing.assert_close(got, expected)


def test_an_empty_batch():
    fused, plain = batch_norm(torch.float32), batch_norm(torch.float32)
    problem = random_problem((0, 8, 3, 4))
    assert "empty batch" in routing.unserved("cpu", problem.inputs["x"], fused, reference.TUTORIAL)
    got, expected = run(functional.cbam, problem, fused), run(reference.cbam, problem, plain)
    torch.testing.assert_close(got, expected, equal_nan=True)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), equal_nan=True)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("absent", [("running_mean", "running_var"), ("num_batches_tracked",)], ids=str)
def test_buffers_that_are_none(absent, momentum):
    problem = random_problem((2, 8, 5, 5), torch.float64)
    fused, plain = (batch_norm(torch.float64, momentum=momentum) for _ in range(2))
    for norm in (fused, plain):
        for name in absent:
            setattr(norm, name, None)
    got, expected = run(functional.cbam, problem, fused), run(reference.cbam, problem, plain)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def test_too_few_pixels():
    norm, problem = batch_norm(torch.float32), random_problem((1, 8, 1, 1))
    with pytest.raises(ValueError, match="more than one pixel"):
        functional.cbam(**problem.inputs, norm=norm)
    assert norm.num_batches_tracked == 0


def test_synchronised_batch_norm_is_the_reference():
    norm = nn.SyncBatchNorm(1)
    reasons = [
        routing.unserved("cpu", torch.ones(1, 2, 2, 2), norm.train(mode), reference.TUTORIAL) for mode in (True, False)
    ]
    assert "SyncBatchNorm" in reasons[0] and not reasons[1]


def test_folding_moves_no_buffer():
    norm = batch_norm(torch.float32).eval()
    before = copy.deepcopy(norm.state_dict())
    run(functional.cbam, random_problem((2, 8, 5, 5)), norm)
    assert all(torch.equal(t, before[n]) for n, t in norm.state_dict().items())
