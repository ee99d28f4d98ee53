"""Replaced or changed modules at m.ca, m.sa and their layers are called, in both implementations."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cbam_fused import CBAM, ChannelAttention, SpatialAttention, reference

X = torch.randn(2, 32, 9, 8, generator=torch.Generator().manual_seed(0)).relu()
BOTH = pytest.mark.parametrize("cls", [CBAM, reference.CBAM], ids=["fused", "reference"])


def by_formula(module, x):
    """The formula as users write it: each mask and each layer is called."""

    def mlp(pooled):
        return module.ca.fc2(F.relu(module.ca.fc1(pooled)))

    def channel(x):
        return torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1)))

    def spatial(x):
        return torch.sigmoid(module.sa.conv1(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))

    own = reference.ChannelAttention, reference.SpatialAttention
    for mask, kind, formula in ((module.ca, own[0], channel), (module.sa, own[1], spatial)):
        patched = not isinstance(mask, kind) or type(mask) not in (*own, ChannelAttention, SpatialAttention)
        x = x * (mask(x) if patched or "forward" in vars(mask) else formula(x))
    return x


class Halved(ChannelAttention):
    def forward(self, x):
        return super().forward(x) / 2


class Called(ChannelAttention):
    def __call__(self, x):
        return super().__call__(x) / 2


class SameNames(nn.Module):
    """The children of a channel mask with another function."""

    def __init__(self, ca):
        super().__init__()
        self.fc1, self.fc2 = ca.fc1, ca.fc2

    def forward(self, x):
        return self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).tanh()


class LookAlike(nn.Module):
    """The children and attributes of a spatial mask with another function."""

    def __init__(self, sa):
        super().__init__()
        self.conv1, self.bn, self.switches = sa.conv1, None, sa.switches

    def calls_layers(self):
        return False

    def forward(self, x):
        return self.conv1(x[:, :2]).sigmoid()


def patch(module, name, factor=3):
    layer = module.get_submodule(name)
    old = layer.forward
    layer.forward = lambda *args: factor * old(*args)


def dilate(module):
    """As segmentation libraries do in an encoder."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.dilation = (2, 2)
            layer.padding = tuple(k // 2 * 2 for k in layer.kernel_size)


def layer(name, **attributes):
    def change(module):
        for key, value in attributes.items():
            setattr(module.get_submodule(name), key, value)
        if "padding_mode" in attributes:
            conv = module.get_submodule(name)
            conv._reversed_padding_repeated_twice = [p for p in reversed(conv.padding) for _ in range(2)]

    return change


def conv_forward(module):
    conv = module.sa.conv1
    conv._conv_forward = lambda x, weight, bias: F.conv2d(x, -weight, bias, padding=3)


CHANGES = {
    "a mask of the same names": lambda m: setattr(m, "ca", SameNames(m.ca)),
    "a mask of the same attributes": lambda m: setattr(m, "sa", LookAlike(m.sa)),
    "a subclass": lambda m: setattr(m, "ca", Halved(32, 4)),
    "a subclass with another __call__": lambda m: setattr(m, "ca", Called(32, 4)),
    "Identity for ca": lambda m: setattr(m, "ca", nn.Identity()),
    "Identity for sa": lambda m: setattr(m, "sa", nn.Identity()),
    "Identity for both": lambda m: (setattr(m, "ca", nn.Identity()), setattr(m, "sa", nn.Identity())),
    "Sigmoid": lambda m: setattr(m, "sa", nn.Sigmoid()),
    "compiled ca": lambda m: setattr(m, "ca", torch.compile(m.ca, backend="eager")),
    "compiled sa": lambda m: setattr(m, "sa", torch.compile(m.sa, backend="eager")),
    "a sequence": lambda m: setattr(m, "ca", nn.Sequential(m.ca, nn.Hardtanh(0, 0.4))),
    "forward of ca": lambda m: patch(m, "ca"),
    "forward of sa": lambda m: patch(m, "sa"),
    "forward of fc1": lambda m: patch(m, "ca.fc1"),
    "forward of fc2": lambda m: patch(m, "ca.fc2"),
    "forward of conv1": lambda m: patch(m, "sa.conv1"),
    "_conv_forward": conv_forward,
    "dilation": dilate,
    "dilation alone": layer("sa.conv1", dilation=(2, 2), padding=(6, 6)),
    "reflection": layer("sa.conv1", padding_mode="reflect"),
    "circular": layer("sa.conv1", padding_mode="circular"),
    "padding same": layer("sa.conv1", padding="same"),
    "padding of fc2": layer("ca.fc2", padding=(1, 1)),
    "a mask with another switch": lambda m: setattr(m, "ca", ChannelAttention(32, 4, channel_gate="hard_sigmoid")),
}
OTHER_FORMULA = {"padding of fc2", "a mask with another switch"}


def changed(cls, name):
    torch.manual_seed(0)
    module = cls(32, 4)
    CHANGES[name](module)
    return module


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in OTHER_FORMULA])
@BOTH
def test_it_is_called(cls, name):
    module = changed(cls, name)
    torch.testing.assert_close(module(X), by_formula(module, X))
    if cls is CBAM:
        found = module.backend_for(X)
        assert found.name == "reference" and "one by one" in found.reason


@pytest.mark.parametrize("part", ["ca", "sa", "ca.fc1", "ca.fc2", "sa.conv1"])
@pytest.mark.parametrize("alone", [False, True])
@BOTH
def test_every_call_of_a_forward_on_an_instance_counts(cls, alone, part):
    """Also where the mask itself is called."""
    module, calls = cls(32, 4), []
    old = module.get_submodule(part).forward
    module.get_submodule(part).forward = lambda x: calls.append(part) or old(x)
    (module.get_submodule(part.partition(".")[0]) if alone else module)(X)
    assert calls


@BOTH
def test_a_mask_with_another_switch_in_its_place(cls):
    torch.manual_seed(0)
    module = cls(32, 4)
    kind = type(module.ca)
    module.ca = kind(32, 4, channel_gate="hard_sigmoid")
    y = X * module.ca(X)
    torch.testing.assert_close(module(X), y * module.sa(y))
    module.ca = kind(32, 4, ties="even")
    x = torch.ones_like(X).requires_grad_()
    module(x).sum().backward()
    y = (z := torch.ones_like(X).requires_grad_()) * module.ca(z)
    (y * module.sa(y)).sum().backward()
    torch.testing.assert_close(x.grad, z.grad)


@BOTH
def test_a_padded_fully_connected_layer(cls):
    """A 3 x 3 gate cannot multiply a 9 x 8 map, but a 3 x 3 map."""
    module, x = cls(32, 4), X[:, :, :3, :3]
    layer("ca.fc2", padding=(1, 1))(module)
    assert module.ca(x).shape == (2, 32, 3, 3)
    y = x * module.ca(x)
    torch.testing.assert_close(module(x), y * module.sa(y))
    with pytest.raises(RuntimeError, match="must match"):
        module(X)


@BOTH
def test_strides_put_in_later_are_not_ignored(cls):
    module = cls(32, 4)
    module.sa.conv1.stride = (2, 2)
    assert module.sa(X).shape == (2, 1, 5, 4)
    with pytest.raises(RuntimeError, match="must match"):
        module(X)


@BOTH
def test_a_forward_of_batch_norm_on_the_instance(cls):
    module = cls(32, 4, norm=True).eval()
    before = module(X)
    patch(module, "sa.bn", -1)
    assert not torch.allclose(module(X), before)
    y = X * module.ca(X)
    torch.testing.assert_close(module(X), y * module.sa(y))


class Offloaded:
    """As in offloading: weights are loaded when a layer is called, and then moved to the meta device."""

    def __init__(self, layer):
        self.layer, self.old, self.weights = layer, layer.forward, layer.state_dict(keep_vars=False)
        self.weights = {name: t.clone() for name, t in self.weights.items()}
        layer.to("meta")
        layer.forward = self

    def __call__(self, *args):
        self.layer.to_empty(device="cpu").load_state_dict(self.weights)
        y = self.old(*args)
        self.layer.to("meta")
        return y


@BOTH
def test_offloaded_layers(cls):
    module = cls(32, 4)
    with torch.no_grad():
        expected = module(X)
        for name in ("ca.fc1", "ca.fc2", "sa.conv1"):
            Offloaded(module.get_submodule(name))
        torch.testing.assert_close(module(X), expected)
        torch.testing.assert_close(module.ca(X), copy.copy(module.ca)(X))


@pytest.mark.parametrize("part", ["ca", "sa", "ca.fc1", "ca.fc2", "sa.conv1", "sa.bn"])
@BOTH
def test_parameters_on_meta_are_an_error(cls, part):
    """PyTorch's operators return uninitialised memory."""
    module = cls(32, 4, norm=True, bias=True)
    module.get_submodule(part).to("meta")
    for called in (module, module.ca if part.startswith("ca") else module.sa):
        with pytest.raises((ValueError, RuntimeError), match="meta"):
            called(X)


def test_what_is_as_built_is_not_called():
    """Unchanged modules and their copies stay on the fast path."""
    module = CBAM(32, 4)
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), module.double().float()):
        assert other._as_built.weights(other) is not None and not other.calls_masks()
    module.sa.conv1.comment = "no change of what it computes"
    assert module._as_built.weights(module) is None and module.backend_for(X) == ("cpu", "")
