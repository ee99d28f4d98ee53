"""State_dicts with public names: loading into any module with these parameters, at any depth, and exporting."""

import warnings

import pytest
import torch
from public import PUBLIC, filled
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from cbam_fused import CBAM, ChannelAttention, SpatialAttention, export_state_dict, reference
from cbam_fused.variants.table import VARIANTS

pytestmark = pytest.mark.usefixtures("fresh_warnings")
X = torch.randn(2, 32, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).relu()


def same_function(a, b):
    """Whether two variants are the same function of the same canonical parameters."""
    keys = ("bias", "act", "pools", "combine", "gate_place", "channel_gate", "maps", "spatial_bias", "norm", "residual")
    keys += ("spatial",)
    return all(getattr(a.switches, k) == getattr(b.switches, k) for k in keys) and a.kernel_size == b.kernel_size


PAIRS = [(a, b) for a in VARIANTS for b in VARIANTS if same_function(VARIANTS[a], VARIANTS[b])]


def test_many_pairs():
    assert len(PAIRS) > 150


@pytest.mark.parametrize("target", VARIANTS)
def test_any_names_into_any_module_of_the_same_function(target):
    for source in (a for a, b in PAIRS if b == target):
        public = filled(PUBLIC[source](32, 8 if source != "luuuyi" else 16))
        hidden = next(p.shape[0] for n, p in public.named_parameters() if p.dim() > 1 and p.shape[1] == 32)
        module = CBAM(32, variant=target, width="single" if hidden == 32 else hidden).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ambiguous names, see below
            module.load_state_dict(public.state_dict(), strict=True)
        torch.testing.assert_close(module.eval()(X), public.eval()(X), msg=lambda m: f"{source}: {m}")  # noqa: B023
        exported = export_state_dict(module, source)
        assert exported.keys() == public.state_dict().keys()
        for name, t in public.state_dict().items():
            assert torch.equal(exported[name], t) and exported[name].shape == t.shape, (source, name)


def resnet(block, layers, attention, **more):
    """torchvision's ResNet with a CBAM in each block before the addition, as in the official code."""

    class Block(block):
        def __init__(self, inplanes, planes, *args, **kwargs):
            super().__init__(inplanes, planes, *args, **kwargs)
            self.cbam = attention(planes * self.expansion)

        def forward(self, x):
            identity = x if self.downsample is None else self.downsample(x)
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            if self.expansion == 4:
                out = self.bn3(self.conv3(self.relu(out)))
            return self.relu(self.cbam(out) + identity)

    return ResNet(Block, layers, **more)


SIZES = [
    (BasicBlock, [2, 2, 2, 2], 11_779_392),
    (BasicBlock, [3, 4, 6, 3], 21_960_468),
    (Bottleneck, [3, 4, 6, 3], 28_089_624),
    (Bottleneck, [3, 4, 23, 3], 49_330_172),
]


@pytest.mark.parametrize("block,layers,total", SIZES, ids=["18", "34", "50", "101"])
def test_totals_of_the_official_networks(block, layers, total):
    with torch.device("meta"):
        model = resnet(block, layers, lambda channels: CBAM(channels, variant="official"))
    assert sum(p.numel() for p in model.parameters()) == total


def test_official_resnet50_loads_strictly():
    torch.manual_seed(0)
    official = resnet(Bottleneck, [3, 4, 6, 3], lambda channels: PUBLIC["official"](channels, 16), num_classes=3)
    for name, p in official.named_parameters():
        if name.endswith(("spatial.bn.weight", "spatial.bn.bias")) or "ChannelGate" in name:
            nn.init.normal_(p, std=0.3)
    state = official.state_dict()
    names = ["ChannelGate.mlp.1.weight", "ChannelGate.mlp.1.bias", "ChannelGate.mlp.3.weight", "ChannelGate.mlp.3.bias"]
    names += ["SpatialGate.spatial.conv.weight", "SpatialGate.spatial.bn.weight", "SpatialGate.spatial.bn.bias"]
    names += [f"SpatialGate.spatial.bn.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")]
    assert [n for n in state if n.startswith("layer4.2.cbam.")] == [f"layer4.2.cbam.{n}" for n in names]
    model = resnet(Bottleneck, [3, 4, 6, 3], lambda channels: CBAM(channels, variant="official"), num_classes=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.load_state_dict(state, strict=True) == ([], [])
    exported = export_state_dict(model, "official")
    assert [*exported] == [*state] and all(torch.equal(exported[n], state[n]) for n in state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for mode in (True, False):
            torch.testing.assert_close(
                model.train(mode).double()(x.double()), official.train(mode).double()(x.double())
            )


def test_own_names_within_a_network():
    torch.manual_seed(0)
    a = nn.Sequential(nn.Conv2d(3, 16, 3), CBAM(16, variant="official"), CBAM(16))
    b = nn.Sequential(nn.Conv2d(3, 16, 3), reference.CBAM(16, variant="official"), reference.CBAM(16))
    b.load_state_dict(a.state_dict(), strict=True)
    assert all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def test_shapes_of_linear_layers_under_own_names():
    state = {n: t.flatten(1) if "fc" in n else t for n, t in CBAM(32).state_dict().items()}
    assert state["ca.fc1.weight"].shape == (2, 32)
    CBAM(32).load_state_dict(state, strict=True)


def test_masks_alone():
    state = filled(PUBLIC["official"](32, 16)).state_dict()
    ca, sa = ChannelAttention(32, bias=True), SpatialAttention(norm=True)
    for module, outer in ((ca, "ChannelGate."), (sa, "SpatialGate.")):
        part = {n.removeprefix(outer): t for n, t in state.items() if n.startswith(outer)}
        module.load_state_dict(part, strict=True)
        exported = export_state_dict(module, "official")
        assert [*exported] == [*part]
        for name in part:
            torch.testing.assert_close(exported[name], part[name].to(exported[name]))


def test_masks_in_a_block():
    """The names of luuuyi, whose masks belong to the blocks, load into mask modules in the same places."""
    state = filled(PUBLIC["luuuyi"](32, 16)).state_dict()
    masks = {"ca": ChannelAttention(32, variant="luuuyi"), "sa": SpatialAttention(variant="luuuyi")}
    model = nn.ModuleDict(masks).double()
    model.load_state_dict(state, strict=True)
    exported = export_state_dict(model, "luuuyi")
    assert [*exported] == [*state] and all(torch.equal(exported[n], state[n]) for n in state)


def test_a_named_variant_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for variant in VARIANTS:
            state = PUBLIC[variant](32, 16).state_dict()
            CBAM(32, 16, variant=variant).load_state_dict(state, strict=True)


def test_order_can_be_given():
    state = PUBLIC["cbam_layer"](32, 16).state_dict()
    module = CBAM(32, variant="cbam_layer", spatial_order="mean_max")
    module.load_state_dict(state, strict=True)
    assert torch.equal(module.sa.conv1.weight, state["conv.weight"])
    assert torch.equal(export_state_dict(module, "cbam_layer")["conv.weight"], state["conv.weight"])


def test_export_of_one_module_under_two_names():
    model = nn.ModuleDict({"a": CBAM(32)})
    model["b"] = model["a"]
    names = [f"channelattention.{fc}.weight" for fc in ("fc1", "fc2")] + ["spatialattention.conv1.weight"]
    assert [*export_state_dict(model, "bubbliiiing")] == [f"{outer}.{n}" for outer in "ab" for n in names]


def test_options_of_a_variant_export():
    module = CBAM(32, variant="official", spatial=False, pools=("avg", "max", "lse"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported = export_state_dict(module, "official")
    assert [*exported] == [f"ChannelGate.mlp.{i}.{n}" for i in (1, 3) for n in ("weight", "bias")]
    assert [*export_state_dict(CBAM(32, variant="timm", bias=True), "timm")][:2] == [
        "channel.fc1.weight",
        "channel.fc1.bias",
    ]
