"""Exported programs (cbam_fused/exported_ops.py): results and derivatives of the module."""

import copy

import pytest
import torch
from torch import func, nn

from cbam_fused import CBAM, ChannelAttention, SpatialAttention, use_backend
from cbam_fused.ops import registry

BATCH = torch.export.Dim("batch")


class Masks(nn.Module):
    def __init__(self):
        super().__init__()
        self.ca, self.sa = ChannelAttention(8, 4), SpatialAttention(3)

    def forward(self, x):
        x = x * self.ca(x)
        return x * self.sa(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.cbam = CBAM(8, 4)

    def forward(self, x):
        return self.cbam(x, residual=x, relu=True)


def without_running_statistics():
    module = CBAM(8, 4, variant="official")
    module.sa.bn = nn.BatchNorm2d(1, track_running_stats=False)
    return module


# The module, and the operator of its program.
MODULES = {
    "tutorial": ("cbam", lambda: CBAM(8, 4)),
    "even ties": ("cbam", lambda: CBAM(8, 4, ties="even")),
    "squeeze-and-excitation": ("cbam", lambda: CBAM(8, 4, variant="torchvision_se", act="silu")),
    "one layer": ("cbam", lambda: CBAM(8, variant="ultralytics")),
    "residual": ("cbam", Residual),
    "folded BatchNorm": ("cbam", lambda: CBAM(8, 4, variant="official").eval()),
    "BatchNorm by the batch": ("cbam_batch_norm", lambda: CBAM(8, 4, variant="official")),
    "BatchNorm without running statistics": ("cbam_batch_norm", without_running_statistics),
    "masks": ("gate", Masks),
}
modules = pytest.mark.parametrize("name", MODULES)
# Running statistics cannot be updated under a transform, for any module.
TRANSFORMED = [name for name in MODULES if name != "BatchNorm by the batch"]


@pytest.fixture
def x():
    return torch.randn(3, 8, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(name):
    torch.manual_seed(0)
    return MODULES[name][1]().double()


def exported(module, x, **options):
    program = torch.export.export(copy.deepcopy(module), (x[:2],), dynamic_shapes=({0: BATCH},), **options)
    return program, program.module()


def ours(program):
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    return {target for target in targets if target.startswith(registry.NAMESPACE)}


def gradients(f, x):
    x = x.clone().requires_grad_()
    y = f(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *f.parameters()])]


@modules
@pytest.mark.parametrize("strict", [False, True])
def test_a_program_trains_as_its_module(name, strict, x):
    """Bitwise equal outputs, gradients and running statistics."""
    module = build(name)
    program, loaded = exported(module, x, strict=strict)
    assert ours(program) == {f"cbam_fused.{MODULES[name][0]}.default"}
    for got, expected in zip(gradients(loaded, x), gradients(module, x), strict=True):
        assert torch.equal(got, expected)
    for key, t in loaded.named_buffers():
        assert torch.equal(t, module.get_buffer(key)), key


def second_derivative(f, x):
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(dx.square().sum(), x)[0]


TRANSFORMS = {
    "grad": lambda f, x: func.grad(lambda x: f(x).square().sum())(x),
    "jvp": lambda f, x: func.jvp(f, (x,), (x + 1,))[1],
    "vmap": lambda f, x: func.vmap(f)(torch.stack([x, 2 * x])),
    "double backward": second_derivative,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_of_a_program(name, transform, x):
    module = build(name)
    got, expected = (TRANSFORMS[transform](f, x) for f in (exported(module, x)[1], module))
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected)


@modules
def test_a_program_finds_its_backend_where_it_runs(name, x, monkeypatch):
    """Like the module, for any backend at export."""
    _, program = exported(build(name), x)
    expected = gradients(program, x)
    monkeypatch.setattr(registry, "operators", {})  # no kernel may be used
    with use_backend("reference"):
        torch.testing.assert_close(gradients(program, x), expected)
    with pytest.raises(KeyError, match="cpu"):
        program(x)


@modules
def test_half_x_and_float32_parameters_in_a_program(name, x):
    """The bits and dtypes of the module, also with plain operators."""
    module, x = build(name).float(), x.bfloat16()
    _, program = exported(module, x)
    got, expected = gradients(program, x), gradients(module, x)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, expected, strict=True))
    with use_backend("reference"):
        for plain, t in zip(gradients(program, x), got, strict=True):
            assert plain.dtype == t.dtype
            assert (plain - t).norm() <= 0.05 * t.norm() + 1e-3


@modules
def test_a_decomposed_program_has_the_raw_operators(name, x):
    """AOTInductor calls them, possibly without Python."""
    program, loaded = exported(build(name), x)
    decomposed = program.run_decompositions()
    assert ours(decomposed) <= {str(operator) for operator in registry.operators["cpu"]} and ours(decomposed)
    with torch.no_grad():
        assert torch.equal(decomposed.module()(x), loaded(x))


def test_a_program_compiles_to_one_graph(x):
    torch.compiler.reset()
    _, program = exported(build("tutorial"), x)
    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    for got, expected in zip(gradients(compiled, x), gradients(program, x), strict=True):
        torch.testing.assert_close(got, expected)
