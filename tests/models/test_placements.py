"""The presets' places in the networks of torchvision, and training through them."""

import copy
import io
import re

import pytest
import torch
import torchvision
from backbones import UNET_BLOCKS, DoubleConv, build, image, same_state, small_resnet, small_swin
from torch import nn

from cbam_fused import CBAM
from cbam_fused.surgery import insert_cbam, remove_cbam

BOTTLENECK, BASIC = (256, 512, 1024, 2048), (64, 128, 256, 512)
LAYERS = {"resnet18": BASIC, "resnet50": BOTTLENECK, "resnext50_32x4d": BOTTLENECK, "wide_resnet50_2": BOTTLENECK}
STAGES = {
    **{arch: [(f"layer{i}", width) for i, width in enumerate(widths, 1)] for arch, widths in LAYERS.items()},
    "vgg11": [("features.1", 64), ("features.4", 128), ("features.9", 256), ("features.14", 512), ("features.19", 512)],
    "vgg11_bn": [
        ("features.2", 64),
        ("features.6", 128),
        ("features.13", 256),
        ("features.20", 512),
        ("features.27", 512),
    ],
    "densenet121": [(f"features.transition{i}", 64 * 2**i) for i in (1, 2, 3)] + [("features.norm5", 1024)],
    "mobilenet_v2": [(f"features.{i}", w) for i, w in ((1, 16), (3, 24), (6, 32), (13, 96), (18, 1280))],
    "mobilenet_v3_small": [(f"features.{i}", w) for i, w in ((1, 16), (3, 24), (8, 48), (12, 576))],
    "efficientnet_b0": [(f"features.{i}", w) for i, w in ((1, 16), (2, 24), (3, 40), (5, 112), (8, 1280))],
    "convnext_tiny": [(f"features.{i}", w) for i, w in ((1, 96), (3, 192), (5, 384), (7, 768))],
    "swin_t": [(f"features.{i}", w) for i, w in ((1, 96), (3, 192), (5, 384), (7, 768))],
}
STEMS = {
    **dict.fromkeys(LAYERS, "relu"),
    "vgg11": "features.1",
    "vgg11_bn": "features.2",
    "densenet121": "features.relu0",
} | dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "swin_t"), "features.0")


@pytest.mark.parametrize("arch", STAGES)
def test_each_layer_stem_last_and_last(arch):
    model = build(arch)
    places = {}
    for preset in ("each_layer", "stem_last", "last"):
        inserted = insert_cbam(model, where=preset, example_input=image(1))
        places[preset] = [(name.removesuffix(".cbam"), m.ca.fc1.in_channels) for name, m in inserted.items()]
        remove_cbam(model)
    assert places["each_layer"] == STAGES[arch]
    assert places["last"] == STAGES[arch][-1:]
    assert [name for name, _ in places["stem_last"]] == [STEMS[arch], STAGES[arch][-1][0]]


def test_a_preset_means_the_same_for_any_image_size():
    model = build("mobilenet_v3_small")
    default = list(insert_cbam(model, where="each_layer"))
    remove_cbam(model)
    wide = list(insert_cbam(model, where="each_layer", example_input=torch.zeros(1, 3, 96, 160)))
    assert default == wide == [f"{name}.cbam" for name, _ in STAGES["mobilenet_v3_small"]]


@pytest.mark.parametrize(
    "arch,kind,child",
    [
        ("resnet18", torchvision.models.resnet.BasicBlock, ""),
        ("resnext50_32x4d", torchvision.models.resnet.Bottleneck, ""),
        ("mobilenet_v2", torchvision.models.mobilenetv2.InvertedResidual, ".conv"),
        ("mobilenet_v3_small", torchvision.models.mobilenetv3.InvertedResidual, ".block"),
        ("efficientnet_b0", torchvision.models.efficientnet.MBConv, ".block"),
        ("convnext_tiny", torchvision.models.convnext.CNBlock, ".block"),
    ],
)
def test_in_block_is_in_every_block_with_an_addition(arch, kind, child):
    model = build(arch)
    blocks = [n for n, m in model.named_modules() if isinstance(m, kind) and getattr(m, "use_res_connect", True)]
    inserted = insert_cbam(model, where="in_block", example_input=image(1))
    assert list(inserted) == [f"{n}{child}.cbam" for n in blocks] and len(blocks) > 5
    assert all(isinstance(model.get_submodule(n), kind) for n in blocks)


@pytest.mark.parametrize("kind", ["BasicBlock", "Bottleneck"])
def test_in_block_is_before_the_addition(kind):
    """relu(cbam(branch) + shortcut), equal to the result of a hook after the last BatchNorm."""
    fused, plain = small_resnet(kind).eval(), small_resnet(kind).eval()
    last = "bn2" if kind == "BasicBlock" else "bn3"
    for norm in (m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
    plain.load_state_dict(fused.state_dict())
    inserted = insert_cbam(fused, where="in_block")
    insert_cbam(plain, [f"layer{i}.0.{last}" for i in (1, 2, 3, 4)])
    plain.load_state_dict({k.replace(".cbam.", f".{last}.cbam."): v for k, v in fused.state_dict().items()})
    x, epilogues = image(), []
    for module in inserted.values():
        module.register_forward_pre_hook(lambda m, args, kwargs: epilogues.append(kwargs), with_kwargs=True)
    torch.testing.assert_close(fused(x), plain(x))
    assert [(k["residual"].shape[1], k["relu"]) for k in epilogues] == [
        (m.ca.fc1.in_channels, True) for m in inserted.values()
    ]
    for model in (fused, plain):
        model.double().train()(x.double()).square().sum().backward()
    renamed = {n.replace(f".{last}.cbam.", ".cbam."): p.grad for n, p in plain.named_parameters()}
    torch.testing.assert_close({n: p.grad for n, p in fused.named_parameters()}, renamed)


def test_in_block_of_other_networks_is_before_the_addition():
    block = torchvision.models.mobilenetv2.InvertedResidual(8, 8, 1, 2).eval()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), block)
    x = image(1, 8)
    branch = block.conv(model[0](x))
    (cbam,) = insert_cbam(model, where="in_block", example_input=x).values()
    torch.testing.assert_close(model(x), model[0](x) + cbam(branch))


@pytest.mark.parametrize("arch", ["swin_t", "swin_v2_t"])
def test_swin_features_go_through_as_views(arch):
    """(N, H, W, C) becomes (N, C, H, W) in channels_last and returns contiguous, without a copy."""
    model = build(arch).eval()
    seen, expected = {}, {}
    model.features[1][1].register_forward_hook(lambda m, args, output: seen.update(block=output))
    insert_cbam(model, where="last", example_input=image(1))
    (cbam,) = insert_cbam(model, ["features.1"], example_input=image(1)).values()

    def compare(module, args, output):
        (x,) = args
        seen.update(into=x, out=output)
        expected.update(y=CBAM.forward(module, x))

    cbam.register_forward_hook(compare)
    with torch.no_grad():
        model(image())
    x, y = seen["into"], seen["out"]
    assert x.shape == (2, 96, 16, 16) and x.is_contiguous(memory_format=torch.channels_last)
    assert x.data_ptr() == seen["block"].data_ptr()
    assert y.shape == (2, 16, 16, 96) and y.is_contiguous()
    assert torch.equal(y, expected["y"].permute(0, 2, 3, 1))


CYCLES = [(arch, "each_layer") for arch in STAGES]
CYCLES += [(arch, "each_layer") for arch in ("resnet34", "resnet101", "resnet152", "swin_v2_t")]
CYCLES += [(arch, "in_block") for arch in ("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0")]
CYCLES += [("convnext_tiny", "in_block"), ("densenet121", "stem_last"), ("resnet18", "stem_last")]
CYCLES += [("unet", UNET_BLOCKS), ("unet", lambda name, module: isinstance(module, DoubleConv))]


@pytest.mark.parametrize("arch,where", CYCLES, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_train_save_remove_insert_and_load(arch, where):
    model = build(arch)
    plain = copy.deepcopy(model.state_dict())
    x = image()
    inserted = insert_cbam(model, where=where, example_input=x[:1])
    assert [k for k in model.state_dict() if not re.search(r"(^|\.)cbam\.", k)] == list(plain), "no key is renamed"
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = model(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad.sign()
    after = dict(model.named_parameters())
    for name, module in inserted.items():
        moved = [not torch.equal(after[f"{name}.{n}"], before[f"{name}.{n}"]) for n, _ in module.named_parameters()]
        assert any(moved), f"{name} learns"
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    with torch.no_grad():
        expected = model.eval()(x)
        assert remove_cbam(model) == list(inserted)
        assert list(model.state_dict()) == list(plain)
        assert list(insert_cbam(model, where=where, example_input=x[:1])) == list(inserted)
        file.seek(0)
        model.load_state_dict(torch.load(file), strict=True)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "model,where",
    [
        (small_resnet(), "each_layer"),
        (small_resnet(), "in_block"),
        (small_resnet("Bottleneck"), "in_block"),
        (small_resnet(), re.compile(r".*bn1")),
        (small_swin(), "each_layer"),
        (small_swin(), re.compile(r".*\.mlp")),
    ],
    ids=["layers", "BasicBlock", "Bottleneck", "hooks", "NHWC layers", "NHWC hooks"],
)
def test_removal_leaves_nothing_behind(model, where):
    model = copy.deepcopy(model).eval()

    def inside(m):
        return {n: (type(c), list(vars(c)), len(c._forward_hooks), list(c._modules)) for n, c in m.named_modules()}

    before, state, x = inside(model), copy.deepcopy(model.state_dict()), image()
    y = model(x)
    insert_cbam(model, where=where, example_input=x[:1])
    assert inside(model) != before and not torch.equal(model(x), y)
    remove_cbam(model)
    assert inside(model) == before and same_state(model.state_dict(), state)
    assert torch.equal(model(x), y)
    assert remove_cbam(model) == []


class PreActivation(torchvision.models.resnet.BasicBlock):
    """The children of a BasicBlock with another formula."""

    def forward(self, x):
        return x + self.conv2(self.relu(self.bn2(self.conv1(self.relu(self.bn1(x))))))


def pre_activation():
    return nn.Sequential(nn.Conv2d(3, 8, 3), PreActivation(8, 8))


@pytest.mark.parametrize(
    "arch,where,error,message",
    [
        ("resnet18", "each_layr", ValueError, r"unknown preset 'each_layr'; the nearest names are each_layer"),
        ("resnet18", "layer1", ValueError, r"unknown preset 'layer1'; .*; names of sub-modules go to after="),
        ("vgg11", "in_block", ValueError, r"'in_block' does not fit VGG: it has no residual blocks .* after="),
        ("densenet121", "in_block", ValueError, r"'in_block' does not fit DenseNet"),
        ("unet", "each_layer", ValueError, r"'each_layer' does not fit UNet: it has neither layer1"),
        ("unet", "stem_last", ValueError, r"'stem_last' does not fit UNet"),
        ("unet", "last", ValueError, r"'last' does not fit UNet"),
        (pre_activation, "in_block", ValueError, r"'1' looks like a block of ResNet but returns something else"),
        (
            "unet",
            re.compile("down"),
            ValueError,
            r"at least one sub-module by its whole name, got re.compile",
        ),
        ("unet", lambda name, module: False, ValueError, r"at least one sub-module"),
        ("unet", lambda name, module: isinstance(module, nn.MaxPool2d), ValueError, r"'pool' is called with 8 and 16"),
        ("unet", 3, TypeError, r"where must be names, a compiled pattern or a predicate, got int"),
    ],
)
def test_errors_leave_the_model_unchanged(arch, where, error, message):
    model = arch() if callable(arch) else build(arch)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        insert_cbam(model, where=where, example_input=image(1))
    assert dict(model.named_modules()) == modules and same_state(model.state_dict(), state)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
