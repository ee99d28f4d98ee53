"""Networks with attention: replace_cbam changes neither their results nor their training."""

import copy

import pytest
import torch
from choice import ALL
from torch import nn
from truth import LAYOUTS

from cbam_fused import CBAM, replace_cbam


def torchvision_model(name):
    def build():
        models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
        return models.get_model(name, num_classes=10)

    return build


# Blocks of each stage of a ResNet-50: all in make test-all, otherwise one of each width, since replace_cbam takes a
# second to prove that a block is as before.
BLOCKS = (3, 4, 6, 3) if ALL else (1, 1, 1, 1)


def timm_resnet50(attention):
    def build():
        timm = pytest.importorskip("timm", reason="timm is not installed")
        options = {"block_args": {"attn_layer": attention}, "num_classes": 10, "zero_init_last": False}
        return timm.create_model("resnet50", layers=BLOCKS, **options)

    return build


class ChannelGate(nn.Module):
    """ultralytics' channel attention, from its formula and names."""

    def __init__(self, channels):
        super().__init__()
        self.pool, self.fc, self.act = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid()

    def forward(self, x):
        return x * self.act(self.fc(self.pool(x)))


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.cv1, self.act = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.Sigmoid()

    def forward(self, x):
        return x * self.act(self.cv1(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)))


class Ultralytics(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channel_attention, self.spatial_attention = ChannelGate(channels), SpatialGate()

    def forward(self, x):
        return self.spatial_attention(self.channel_attention(x))


def yolo_like():
    """Convolutions with BatchNorm and SiLU, halving the map, each stage with attention behind it."""
    layers, channels = [], 3
    for width in (16, 32, 64, 128):
        convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.SiLU(), Ultralytics(width)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


HARD = "torchvision_se with channel_gate='hard_sigmoid'"
# Name: how it is built, how many attentions it has, and of which variant.
NETWORKS = {
    "efficientnet_b0": (torchvision_model("efficientnet_b0"), 16, "torchvision_se with act='silu'"),
    "mobilenet_v3_large": (
        torchvision_model("mobilenet_v3_large"),
        8,
        "torchvision_se with channel_gate='hard_sigmoid'",
    ),
    "regnet_y_400mf": (torchvision_model("regnet_y_400mf"), 16, "torchvision_se"),
    "resnet50 se": (timm_resnet50("se"), sum(BLOCKS), "torchvision_se"),
    "resnet50 cbam": (timm_resnet50("cbam"), sum(BLOCKS), "timm"),
    "resnet50 lcbam": (timm_resnet50("lcbam"), sum(BLOCKS), "timm_light"),
    "yolo-like": (yolo_like, 4, "ultralytics"),
}


def step(model, x):
    """Logits and every gradient of a training step, by name, and the logits of inference after it."""
    torch.manual_seed(0)  # dropout
    model.zero_grad()
    logits = model.train()(x)
    logits.mul(torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return {"logits": logits.detach(), "inference": model.eval()(x).detach()}, [p.grad for p in model.parameters()]


@pytest.fixture(scope="module")
def pairs():
    """Each network before and after replace_cbam, and the report."""
    found = {}

    def pair(name):
        if name not in found:
            torch.manual_seed(0)
            before = NETWORKS[name][0]()
            after = copy.deepcopy(before)
            found[name] = before, after, replace_cbam(after)
        return found[name]

    return pair


@pytest.mark.parametrize("name", NETWORKS)
def test_every_attention_is_replaced(pairs, name):
    before, after, report = pairs(name)
    _, count, variant = NETWORKS[name]
    assert len(report.replaced) == count and {*report.replaced.values()} == {variant} and not report.skipped
    assert sum(isinstance(m, CBAM) for m in after.modules()) == count
    after.load_state_dict(before.state_dict(), strict=True)
    for module in after.modules():
        if isinstance(module, CBAM):
            x = torch.randn(2, module.ca.fc1.in_channels, 6, 5)
            assert module.backend_for(x).name == "cpu"


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_and_inference_are_as_before(pairs, name, layout):
    """In float64, where differences are not rounding; also channels_last."""
    before, after, _ = pairs(name)
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x.to(memory_format=layout)
    results = [step(copy.deepcopy(m).double().to(memory_format=layout), x) for m in (before, after)]
    (values, grads), (got, got_grads) = results
    for key, expected in values.items():
        torch.testing.assert_close(got[key], expected, rtol=1e-6, atol=1e-7)
    for g, expected in zip(got_grads, grads, strict=True):  # new names, in the same order
        torch.testing.assert_close(g, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_no_worse_than_before(pairs, name):
    """The error of the logits against float64, in bfloat16 and channels_last."""
    before, after, _ = pairs(name)
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = copy.deepcopy(before).eval().double()(x.double())
    x = x.to(memory_format=torch.channels_last)
    errors = []
    for model in (before, after):
        model = copy.deepcopy(model).eval().bfloat16().to(memory_format=torch.channels_last)
        errors.append((model(x).double() - exact).abs().max().item())
    assert errors[1] <= 2 * errors[0] + 2**-8 * exact.abs().max().item()


def gradients(model, x):
    """In eval mode: batch statistics of the last maps' few pixels make noise of what bfloat16 rounds."""
    logits = model.eval()(x)
    return torch.autograd.grad((logits * torch.linspace(-1, 1, 10, dtype=x.dtype)).sum(), [*model.parameters()])


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_gradients_are_no_worse_than_before(pairs, name):
    """The error of all gradients together against float64, in bfloat16 and channels_last."""
    before, after, _ = pairs(name)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    exact = torch.cat([g.flatten() for g in gradients(copy.deepcopy(before).double(), x.double())])
    x = x.to(memory_format=torch.channels_last)
    errors = []
    for model in (before, after):
        model = copy.deepcopy(model).bfloat16().to(memory_format=torch.channels_last)
        got = torch.cat([g.double().flatten() for g in gradients(model, x)])
        errors.append(((got - exact).norm() / exact.norm()).item())
    assert errors[0] < 0.25, "else it would be no test"
    assert errors[1] <= 2 * errors[0]
