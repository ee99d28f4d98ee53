"""torch.func, forward mode and batched gradients of every module; test_autograd.py has the functions."""

import copy

import pytest
import torch
from torch import func

from cbam_fused import CBAM, reference

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

SHAPE = (1, 4, 2, 2)
# The official one has BatchNorm after the convolution, here folded; timm's splits gradients of tied maxima.
MODULES = {
    "cbam": lambda cls: cls.CBAM(4, 2, 3),
    "batch norm": lambda cls: cls.CBAM(4, 2, 3, variant="official").eval(),
    "even ties": lambda cls: cls.CBAM(4, 2, 3, ties="even"),
    "channel mask": lambda cls: cls.ChannelAttention(4, 2),
    "spatial mask": lambda cls: cls.SpatialAttention(3),
}


def pair(name):
    """The fused module and the plain one, in float64 with the same parameters, and a map."""
    import cbam_fused

    torch.manual_seed(0)
    plain = MODULES[name](reference).double()
    fused = MODULES[name](cbam_fused).double()
    fused.load_state_dict(plain.state_dict())
    return fused, plain, torch.randn(SHAPE, dtype=torch.float64)


TRANSFORMS = {
    "grad": lambda f, x: func.grad(lambda x: f(x).square().sum())(x),
    "vjp": lambda f, x: func.vjp(f, x)[1](f(x))[0],
    "jvp": lambda f, x: func.jvp(f, (x,), (x + 1,))[1],
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "hessian": lambda f, x: func.hessian(lambda x: f(x).square().sum())(x),
    "linearize": lambda f, x: func.linearize(f, x)[1](x + 1),
    "vmap": lambda f, x: func.vmap(f)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda f, x: func.vmap(func.grad(lambda x: f(x).square().sum()))(torch.stack([x, 2 * x])),
    "autograd.functional.hessian": lambda f, x: torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x),
    "autograd.functional.jvp": lambda f, x: torch.autograd.functional.jvp(f, x, x + 1)[1],
    "vectorized jacobian": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", MODULES)
def test_transforms_equal_the_reference(name, transform):
    fused, plain, x = pair(name)
    got, expected = (TRANSFORMS[transform](module, x) for module in (fused, plain))
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected)


def test_functional_call_takes_other_parameters():
    fused, other, x = pair("cbam")
    parameters = {name: 2 * p.detach() for name, p in other.named_parameters()}
    got = func.functional_call(fused, parameters, (x,))
    assert not torch.equal(got, fused(x))
    torch.testing.assert_close(got, func.functional_call(other, parameters, (x,)))
    (got, expected) = (
        func.grad(lambda p, m=module: func.functional_call(m, p, (x,)).square().sum())(parameters)
        for module in (fused, other)
    )
    torch.testing.assert_close(got, expected)


def test_ensemble_by_vmap():
    modules = [pair("cbam")[0].requires_grad_(False) for _ in range(3)]
    for i, module in enumerate(modules):
        module.ca.fc1.weight.add_(i)
    x = torch.randn(SHAPE, dtype=torch.float64)
    parameters, buffers = func.stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")
    call = func.vmap(lambda p, b, x: func.functional_call(skeleton, (p, b), (x,)), in_dims=(0, 0, None))
    torch.testing.assert_close(call(parameters, buffers, x), torch.stack([module(x) for module in modules]))


def test_forward_mode_reaches_parameters():
    fused, plain, x = pair("cbam")

    def tangent(module):
        weight = module.ca.fc1.weight.detach()
        call = lambda w: func.functional_call(module, {"ca.fc1.weight": w}, (x,))  # noqa: E731
        return func.jvp(call, (weight,), (torch.ones_like(weight),))[1]

    assert tangent(plain).abs().max() > 0
    torch.testing.assert_close(tangent(fused), tangent(plain))


def test_batched_gradients():
    fused, plain, x = pair("cbam")
    x.requires_grad_()
    directions = torch.eye(x.numel(), dtype=x.dtype).view(-1, *SHAPE)
    got, expected = (torch.autograd.grad(m(x), x, directions, is_grads_batched=True)[0] for m in (fused, plain))
    torch.testing.assert_close(got, expected)


def test_vmap_of_batch_norm_in_training_is_pytorchs_error():
    """Running statistics cannot be updated per image of vmap."""
    module = CBAM(16, variant="official")
    with pytest.raises(RuntimeError, match="running_mean or running_var, which will be updated in place, were not"):
        func.vmap(module)(torch.randn(3, 2, 16, 4, 4))


def test_grad_in_compiled_code():
    torch.compiler.reset()
    fused, plain, x = pair("cbam")
    gradient = func.grad(lambda x: fused(x).square().sum())
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), func.grad(lambda x: plain(x).square().sum())(x))
