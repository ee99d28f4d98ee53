"""insert_cbam on networks of every kind."""

import copy
import functools
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision
from backbones import BiasedCBAM, image, small_resnet
from torch import nn

from cbam_fused import CBAM, insert_cbam, reference, remove_cbam, routing

PLACES = {
    "resnet18": (["layer1", "layer4.0", "conv1"], [64, 512, 64]),
    "vgg11_bn": (["features.3", "features"], [64, 512]),
    "densenet121": (["features.transition1", "features"], [128, 1024]),
    "mobilenet_v3_small": (["features.1", "features.12"], [16, 576]),
    "efficientnet_b0": (["features.2", "features"], [24, 1280]),
    "convnext_tiny": (["features.1"], [96]),
}


@pytest.mark.parametrize("arch", PLACES)
def test_backbones(arch):
    places, widths = PLACES[arch]
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, num_classes=5).eval()
    plain = copy.deepcopy(model)
    inserted = insert_cbam(model, places)
    assert list(inserted) == [f"{p}.cbam" for p in places]
    assert [m.ca.fc1.in_channels for m in inserted.values()] == widths
    assert all(model.get_submodule(n) is m and isinstance(m, CBAM) and not m.training for n, m in inserted.items())
    # Pretrained weights load after the insertion; only the new modules are missing.
    report = model.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys and all(".cbam." in k or k.startswith("cbam.") for k in report.missing_keys)
    x = torch.randn(2, 3, 64, 64)
    calls = []
    for name, module in inserted.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    y = model(x)
    assert sorted(calls) == sorted(inserted), "each is called once"
    assert not torch.equal(y, plain(x))


def test_output_is_cbam_of_the_named_modules_output():
    model = torchvision.models.resnet18(num_classes=5).eval()
    stages = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
    x = torch.randn(1, 3, 64, 64)
    before = stages(x)
    (module,) = insert_cbam(model, ["layer1"]).values()
    torch.testing.assert_close(stages(x), module(before))


class InAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.out = nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 2, 3)

    def forward(self, x):
        with torch.autocast("cpu", torch.float16):
            return self.out(self.relu(self.conv(x)))


@pytest.mark.parametrize("place", ["conv", "relu"])
def test_no_half_parameters_from_autocast(place):
    model = InAutocast()
    insert_cbam(model, [place])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler.scale(model(torch.randn(1, 3, 16, 16)).float().sum()).backward()
    scaler.step(optimizer)
    half = InAutocast().half()
    insert_cbam(half, [place])
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_training_copies_and_pickles():
    model = torchvision.models.resnet18(num_classes=5)
    insert_cbam(model, ["layer1", "conv1"], reduction=4, kernel_size=3)
    assert model.conv1.cbam.sa.conv1.kernel_size == (3, 3) and model.conv1.cbam.ca.fc1.out_channels == 16
    x = torch.randn(2, 3, 64, 64)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.conv1.cbam.ca.fc1.weight.data.zero_()
        assert not torch.equal(copied.eval()(x), model.eval()(x)), "the copy uses its own CBAM"
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_model_is_otherwise_as_before():
    model = torchvision.models.resnet18(num_classes=5)
    model.layer2.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = {n: m.training for n, m in model.named_modules()}
    insert_cbam(model, ["layer1", "layer2"])
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()), "neither weights nor BatchNorm statistics"
    assert all(model.get_submodule(n).training == mode for n, mode in modes.items())
    assert model.layer1.cbam.training and not model.layer2.cbam.training


def test_dtype_factory_and_example_input():
    model = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1, 1)))
    with pytest.raises(ValueError, match="example_input must be"):
        insert_cbam(model, ["1"])
    (module,) = insert_cbam(
        model.double(), ["1"], factory=reference.CBAM, example_input=torch.ones(1, 4).double()
    ).values()
    assert type(module) is reference.CBAM and module.ca.fc1.weight.dtype == torch.float64


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.flat = nn.Flatten()

    def forward(self, x):
        return self.flat(self.used(x))


@pytest.mark.parametrize(
    "model,after,message",
    [
        (torchvision.models.resnet18, ["layr1"], r"no sub-module 'layr1'; the nearest names are layer1"),
        (
            torchvision.models.resnet18,
            "each_layer",
            r"got the preset 'each_layer'; pass it as where=",
        ),
        (torchvision.models.resnet18, ["layer1", "layer1"], r"after must name sub-modules, each only once"),
        (torchvision.models.resnet18, [], r"at least one"),
        (torchvision.models.resnet18, ["fc"], r"'fc' must return a tensor \(N, C, H, W\), got \(1, 1000\)"),
        (Unused, ["used", "unused"], r"'unused' is not called"),
        (Unused, ["used", "flat"], r"'flat' must return a tensor \(N, C, H, W\), got \(1, 394272\)"),
        (
            torchvision.models.densenet121,
            ["features.denseblock1"],
            r"is a _DenseBlock, which may call all its children",
        ),
    ],
)
def test_errors_leave_the_model_unchanged(model, after, message):
    model = model()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        insert_cbam(model, after)
    assert list(model.state_dict()) == keys
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    "build_one,choice,name",
    [
        (small_resnet, {"after": ["layer1"]}, "layer1"),
        (small_resnet, {"where": "stem_last"}, "relu"),
        (small_resnet, {"where": "in_block"}, r"layer1\.0"),
        (torchvision.models.mobilenet_v3_small, {"where": "in_block"}, r"features\.3\.block"),
    ],
)
def test_twice_at_one_place(build_one, choice, name):
    model = build_one()
    insert_cbam(model, **choice)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=f"'{name}' already has a child named 'cbam'"):
        insert_cbam(model, **choice)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("arguments", [{}, {"after": ["layer1"], "where": "each_layer"}])
def test_either_after_or_where(arguments):
    with pytest.raises(TypeError, match=r"either after= .* or where="):
        insert_cbam(small_resnet(), **arguments)


def test_names_are_texts():
    with pytest.raises(TypeError, match=r"after must be names of sub-modules, got 1 in \['layer1', 1\]"):
        insert_cbam(small_resnet(), ["layer1", 1])


def test_in_block_needs_a_module_with_the_epilogue():
    model = small_resnet()
    with pytest.raises(ValueError, match=r"module for 'layer1\.0' must accept residual= and relu="):
        insert_cbam(model, where="in_block", factory=lambda *a: nn.Identity())
    assert not any(isinstance(m, nn.Identity) for m in model.modules())


class Scaled(nn.Module):
    """A part of a network that returns (N, H, W, C) with half the image's sides, rounded up."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1, stride=2), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (33, 47)])
def test_channels_last_is_told_from_the_image(size):
    model = Scaled()
    inserted = insert_cbam(model, ["conv", "norm"], example_input=torch.zeros(1, 3, *size))
    assert [m.ca.fc1.in_channels for m in inserted.values()] == [8, 8]
    assert model(torch.randn(2, 3, *size)).shape == (2, *((side + 1) // 2 for side in size), 8)


def test_a_width_that_cannot_be_found():
    model = Scaled()
    with pytest.raises(ValueError, match=r"width of a feature map \(1, 8, 8, 8\) .* more than one .* another size"):
        insert_cbam(model, ["norm"], example_input=torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"width of a feature map \(1, 100, 3, 8\) .* not even one .* another size"):
        insert_cbam(
            nn.Sequential(model, nn.AdaptiveAvgPool2d((3, None))), ["1"], example_input=torch.zeros(1, 3, 200, 99)
        )
    assert len(list(model.modules())) == 3


BIASED = {
    "two pools": {},
    "one pool": {"pools": ("avg",)},
    "BatchNorm": {"norm": True},
    "x added": {"add": True},
}


@pytest.mark.parametrize("options", BIASED.values(), ids=BIASED)
def test_identity_like_initialisation(options):
    """Pretrained features pass almost unchanged at first, in both modes, and every part of the module learns."""
    model, plain = small_resnet().eval(), small_resnet().eval()
    factory = functools.partial(BiasedCBAM, **options)
    (module,) = insert_cbam(model, ["layer4"], factory=factory, init="identity", example_input=image(1)).values()
    factor = 1 + torch.sigmoid(torch.tensor(-4.0)) ** 2 if "add" in options else torch.sigmoid(torch.tensor(4.0)) ** 2
    assert module.sa.conv1.weight.any() == ("norm" in options), "BatchNorm must not divide by a variance of 0"
    x = torch.randn(2, 512, 5, 5) * 100
    for mode in (False, True):
        torch.testing.assert_close(module.train(mode)(x), x * factor)
    logits, bias = plain(image()), plain.fc.bias
    torch.testing.assert_close(model.eval()(image()), (logits - bias) * factor + bias)
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    before = copy.deepcopy(module.state_dict())
    for _ in range(2):
        module(x / 100).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in module.named_parameters())


@pytest.mark.parametrize("factory", [CBAM, reference.CBAM])
def test_no_identity_without_biases(factory):
    model = small_resnet()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"needs a bias in every gate, and CBAM has none: .* variant='official'"):
        insert_cbam(model, ["layer1"], factory=factory, init="identity")
    with pytest.raises(ValueError, match="init must be one of default, identity, got 'ones'"):
        insert_cbam(model, ["layer1"], init="ones")
    assert list(model.state_dict()) == keys


def on_the_cpu(*sizes):
    with torch.device("cpu"):
        return CBAM(*sizes, variant="official")


def test_noise_does_not_follow_the_default_device():
    """A CPU generator has no numbers for a GPU, and "meta" has no generator."""
    model = small_resnet()
    with torch.device("meta"):
        inserted = insert_cbam(model, where="in_block", factory=on_the_cpu, init="identity")
    assert len(inserted) == 4 and {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_identity_is_measured_where_a_demanded_backend_does_not_serve(backend, monkeypatch):
    """The network is built on the CPU and moved to the GPU later."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model, modules = small_resnet(), []
    for wanted in ("auto", backend):
        monkeypatch.setattr("cbam_fused.routing.wanted", wanted)
        torch.manual_seed(0)
        modules += insert_cbam(model, ["layer4"], factory=on_the_cpu, init="identity").values()
        remove_cbam(model)
    assert routing.wanted == backend
    torch.testing.assert_close(modules[1].state_dict(), modules[0].state_dict())


def test_the_examples_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "guide" / "surgery.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 7
    exec("\n".join(blocks), {})
