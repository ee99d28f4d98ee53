"""The modules: state, initialisation, copies, and the swap in a real network."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import cbam_fused
from cbam_fused import CBAM, ChannelAttention, SpatialAttention, reference

X = torch.randn(2, 32, 7, 9, generator=torch.Generator().manual_seed(0)).relu()


def test_tutorial_layout():
    shapes = {n: tuple(t.shape) for n, t in CBAM(64).state_dict().items()}
    assert shapes == {"ca.fc1.weight": (4, 64, 1, 1), "ca.fc2.weight": (64, 4, 1, 1), "sa.conv1.weight": (1, 2, 7, 7)}
    shapes = {n: tuple(t.shape) for n, t in CBAM(8, reduction=16, kernel_size=3).state_dict().items()}
    assert shapes == {"ca.fc1.weight": (1, 8, 1, 1), "ca.fc2.weight": (8, 1, 1, 1), "sa.conv1.weight": (1, 2, 3, 3)}


def test_initial_values_and_random_numbers_are_those_of_the_convolutions():
    torch.manual_seed(5)
    expected = [nn.Conv2d(40, 10, 1, bias=False), nn.Conv2d(10, 40, 1, bias=False), nn.Conv2d(2, 1, 5, bias=False)]
    next_number = torch.rand(())
    torch.manual_seed(5)
    module = CBAM(40, 4, 5)
    assert torch.rand(()) == next_number
    for got, convolution in zip(module.weights(), expected, strict=True):
        assert torch.equal(got, convolution.weight)


@pytest.mark.parametrize("source,target", [(CBAM, reference.CBAM), (reference.CBAM, CBAM)])
def test_state_goes_both_ways(source, target):
    torch.manual_seed(0)
    a, b = source(32), target(32)
    b.load_state_dict(a.state_dict(), strict=True)
    torch.testing.assert_close(a(X), b(X))
    residual = torch.randn_like(X)
    torch.testing.assert_close(a(X, residual=residual, relu=True), (b(X) + residual).relu())


def test_masks():
    torch.manual_seed(0)
    module = CBAM(32)
    assert type(module.ca) is ChannelAttention and type(module.sa) is SpatialAttention
    channel = module.ca(X)
    spatial = module.sa(channel * X)
    assert channel.shape == (2, 32, 1, 1) and spatial.shape == (2, 1, 7, 9)
    torch.testing.assert_close(spatial * (channel * X), module(X))


def round_trips(module):
    yield "deepcopy", copy.deepcopy(module)
    yield "pickle", pickle.loads(pickle.dumps(module))
    for what in (module, module.state_dict()):
        file = io.BytesIO()
        torch.save(what, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=isinstance(what, dict))
        if isinstance(loaded, dict):
            fresh = CBAM(32)
            fresh.load_state_dict(loaded)
            loaded = fresh
        yield f"torch.save of {type(what).__name__}", loaded


PUT_IN_LATER = {
    "ca.fc1": lambda: nn.Conv2d(32, 2, 1),
    "ca.fc2": lambda: nn.Conv2d(2, 32, 1),
    "sa.conv1": lambda: nn.Conv2d(2, 1, 7, padding=3),
    "sa.bn": lambda: nn.BatchNorm2d(1),
    "ca": lambda: None,
    "sa": lambda: None,
}


@pytest.mark.parametrize("name", PUT_IN_LATER)
def test_what_is_put_in_later_counts(name):
    """Added biases and BatchNorm, and removed gates."""
    torch.manual_seed(0)
    fused, plain, x = CBAM(32), reference.CBAM(32), torch.randn(2, 32, 5, 6)
    plain.load_state_dict(fused.state_dict())
    before, later = fused(x), PUT_IN_LATER[name]()
    for module in (fused, plain):
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, later)
    torch.testing.assert_close(fused(x), plain(x))
    assert not torch.allclose(fused(x), before) and fused.backend_for(x) == ("cpu", "")


def test_copies():
    torch.manual_seed(0)
    module = CBAM(32)
    for name, other in round_trips(module):
        assert torch.equal(other(X), module(X)), name
        assert other.ca.fc1.weight.data_ptr() != module.ca.fc1.weight.data_ptr(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_casts(dtype):
    module = CBAM(32).to(dtype)
    y = module(X.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), module.float()(X), rtol=2e-2, atol=2e-2)


def test_meta_device():
    module = CBAM(32).to("meta")
    y = module(X.to("meta", memory_format=torch.channels_last))
    assert y.shape == X.shape and y.device.type == "meta" and y.is_contiguous(memory_format=torch.channels_last)
    weight = module.ca.fc1.weight
    (grad,) = torch.autograd.grad(y.sum(), weight, create_graph=True)
    assert torch.autograd.grad(grad.sum(), weight)[0].shape == weight.shape


def test_autocast_keeps_the_dtype_of_x():
    module = CBAM(32)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(X).dtype == torch.float32
        y = module(X.bfloat16())
        assert y.dtype == torch.bfloat16
        y.sum().backward()
    assert module.ca.fc1.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("arguments", [(0,), (8, 0), (8, 2.5), (8, 16, 4), (8, 16, 0), ("8",), (True,)])
def test_wrong_arguments(arguments):
    with pytest.raises(
        ValueError, match=r"(channels|reduction|kernel_size) must be an (odd )?integer of at least 1, got"
    ):
        CBAM(*arguments)


def test_sizes_may_be_integers_of_numpy():
    assert str(CBAM(*(np.int64(size) for size in (8, 2, 3)))) == str(CBAM(8, 2, 3))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_swap_in_resnet(arch, layout):
    """The two networks have the same outputs, and the same gradients up to twice float32's error."""
    torch.manual_seed(0)
    eager = torchvision.models.get_model(arch, num_classes=12)
    cbam_fused.insert_cbam(eager, ["layer1", "layer2", "layer3", "layer4"], factory=reference.CBAM)
    fused = torchvision.models.get_model(arch, num_classes=12)
    cbam_fused.insert_cbam(fused, ["layer1", "layer2", "layer3", "layer4"])
    fused.load_state_dict(eager.state_dict(), strict=True)
    x = torch.randn(4, 3, 64, 64)
    # In float64, since in float32 the comparison would measure rounding through 50 layers.
    results = []
    for model in (eager.double(), fused.double()):
        model.to(memory_format=layout)
        y = model(x.double().to(memory_format=layout))
        nn.functional.cross_entropy(y, torch.arange(4)).backward()
        results.append((y, {n: p.grad for n, p in model.named_parameters()}))
    (y0, grads0), (y1, grads1) = results
    torch.testing.assert_close(y0, y1)
    assert all(g is not None for g in grads1.values())
    torch.testing.assert_close(grads0, grads1)
    with torch.no_grad():
        y0, y1 = (m.float().eval()(x.to(memory_format=layout)) for m in (eager, fused))
    torch.testing.assert_close(y0, y1, rtol=1e-4, atol=1e-4)
