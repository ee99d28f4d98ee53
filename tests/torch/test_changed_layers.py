"""Layers that were changed: parametrizations, pruning, folded BatchNorm, a forward of their own."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion, parametrizations, parametrize, prune

from cbam_fused import CBAM, reference

X = torch.randn(2, 32, 7, 9, generator=torch.Generator().manual_seed(0)).relu()
LAYERS = ("ca.fc1", "ca.fc2", "sa.conv1")


@pytest.fixture(autouse=True)
def seeded():
    """With other weights every unit of a hidden layer may be 0, and gradients with them."""
    torch.manual_seed(0)


def trained(attach, module):
    """The output after three steps of SGD with the attachment, and the module's state."""
    attach(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        with parametrize.cached():  # spectral_norm runs a step at each access of its weight
            module(X).square().mean().backward()
        optimizer.step()
    return module.eval()(X), module.state_dict()


class Layered(nn.Module):
    """The plain module as users write it: each layer is called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        plain = reference.CBAM(32)
        self.ca, self.sa = nn.Module(), nn.Module()
        self.ca.fc1, self.ca.fc2, self.sa.conv1 = plain.ca.fc1, plain.ca.fc2, plain.sa.conv1

    def forward(self, x):
        pools = (x.mean((2, 3), keepdim=True), nn.functional.adaptive_max_pool2d(x, 1))
        x = x * sum(self.ca.fc2(self.ca.fc1(p).relu()) for p in pools).sigmoid()
        return x * self.sa.conv1(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)).sigmoid()


def of_each_layer(attach):
    def attach_to_all(module):
        for name in LAYERS:
            torch.manual_seed(1)
            attach(module.get_submodule(name))

    return attach_to_all


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "attach",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        partial(prune.l1_unstructured, name="weight", amount=0.5),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "old spectral_norm", "prune"],
)
@pytest.mark.parametrize("cls", [CBAM, reference.CBAM], ids=["fused", "reference"])
def test_reparametrized_weights_train_as_in_a_plain_module(cls, attach):
    """The old ones and pruning recompute the weight in a hook when the layer is called."""
    got, state = trained(of_each_layer(attach), cls(32))
    expected, plain_state = trained(of_each_layer(attach), Layered())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(state), dict(plain_state), rtol=1e-4, atol=1e-5)


def official():
    """In eval mode, with nontrivial statistics and affine parameters."""
    module = CBAM(32, variant="official").eval()
    bn = module.sa.bn
    for t, value in ((bn.running_mean, 0.3), (bn.running_var, 2), (bn.weight, 1.5), (bn.bias, 0.2)):
        t.data.fill_(value)
    return module


def test_folded_batch_norm():
    """torch.nn.utils.fusion, and fuse_modules, which leaves nn.Identity: the kernels support both."""
    module = official()
    by_hand = copy.deepcopy(module)
    by_hand.sa.conv1 = fusion.fuse_conv_bn_eval(by_hand.sa.conv1, by_hand.sa.bn)
    by_hand.sa.bn = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fused = torch.ao.quantization.fuse_modules(copy.deepcopy(module), [["sa.conv1", "sa.bn"]])
    assert isinstance(fused.sa.bn, nn.Identity) and fused.sa.conv1.bias is not None
    for other in (by_hand, fused):
        assert other.backend_for(X) == ("cpu", "")
        torch.testing.assert_close(other(X), module(X))
        torch.testing.assert_close(other.sa(X), module.sa(X))


def test_another_normalisation_in_the_place_of_batch_norm():
    """Such as torchvision's FrozenBatchNorm2d: the reference calls it."""
    module = official()
    plain = reference.CBAM(32, variant="official").eval()
    plain.load_state_dict(module.state_dict())
    module.sa.bn = plain.sa.bn = nn.GroupNorm(1, 1)
    for part in (module, module.sa):
        name, reason = part.backend_for(X)
        assert name == "reference" and "GroupNorm" in reason
    torch.testing.assert_close(module(X), plain(X))
    torch.testing.assert_close(module.sa(X), plain.sa(X))


class BatchNormAct(nn.BatchNorm2d):
    """As timm's."""

    def forward(self, x):
        return super().forward(x).relu()


def test_batch_norm_with_a_forward_of_its_own_is_called():
    module, plain = official(), reference.CBAM(32, variant="official").eval()
    state = module.state_dict()
    module.sa.bn = BatchNormAct(1).eval()
    module.load_state_dict(state)
    plain.load_state_dict(state)
    plain.sa.bn = module.sa.bn
    for part in (module, module.sa):
        name, reason = part.backend_for(X)
        assert name == "reference" and "BatchNormAct" in reason
    torch.testing.assert_close(module(X), plain(X))
    torch.testing.assert_close(module.sa(X), plain.sa(X))


class Adapter(nn.Module):
    """As in peft: the inner layer's parameters look like its own."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.added = nn.Conv2d(base.in_channels, base.out_channels, base.kernel_size, padding=base.padding, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.added(x)


class Tripled(nn.Conv2d):
    def forward(self, x):
        return 3 * super().forward(x)


OWN_FORWARDS = {
    "adapter": Adapter,
    "subclass": lambda base: Tripled(base.in_channels, base.out_channels, base.kernel_size, padding=base.padding),
}


@pytest.mark.parametrize("own", OWN_FORWARDS.values(), ids=OWN_FORWARDS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cls", [CBAM, reference.CBAM], ids=["fused", "reference"])
def test_a_layer_with_a_forward_of_its_own_is_called(cls, name, own):
    """Its result equals the plain module's, also with an empty hook."""
    module, plain = cls(32, 4), Layered()
    module.load_state_dict(reference.CBAM(32, 4).state_dict())
    layer = own(module.get_submodule(name))
    module.set_submodule(name, layer)
    for part in LAYERS:
        plain.set_submodule(part, module.get_submodule(part))
    y = module(X)
    torch.testing.assert_close(y, plain(X))
    y.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    if cls is CBAM:
        assert module.backend_for(X).name == "reference" and "their own forward" in module.backend_for(X).reason
    layer.register_forward_hook(lambda *args: None)
    assert torch.equal(module(X), y)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(X), y)
