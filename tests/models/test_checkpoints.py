"""State_dicts with public names: loading into any module with these parameters, at any depth, and exporting."""

import warnings

import pytest
import torch
import torchvision
from public import PUBLIC, filled
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from cbam_fused import CBAM, ChannelAttention, SpatialAttention, export_state_dict, reference
from cbam_fused.variants import state_dict
from cbam_fused.variants.table import VARIANTS

X = torch.randn(2, 32, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).relu()


@pytest.fixture(autouse=True)
def fresh_warnings():
    state_dict._warn.cache_clear()


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


def test_halves_under_the_names_of_different_variants():
    torch.manual_seed(0)
    source = CBAM(32)
    values = [source.ca.fc1.weight, source.ca.fc2.weight, source.sa.conv1.weight]
    module = CBAM(32)
    names = ("ChannelGate.mlp.1.weight", "ChannelGate.mlp.3.weight", "spatial_attention.conv.weight")
    with pytest.warns(UserWarning, match="those of leomjl, shared_mlp_snake, yolov5, are ambiguous; assuming"):
        module.load_state_dict(dict(zip(names, values, strict=True)), strict=True)
    for p, value in zip(module.weights(), values, strict=True):
        assert torch.equal(p, value)


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


def errors_of(module, state):
    with pytest.raises(RuntimeError) as error:
        module.load_state_dict(state, strict=True)
    return str(error.value)


def test_batch_norm_without_a_place():
    state = {f"stage.{n}": t for n, t in PUBLIC["official"](32, 16).state_dict().items()}
    message = errors_of(nn.ModuleDict({"stage": CBAM(32, bias=True)}), state)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert f'"stage.SpatialGate.spatial.bn.{name}"' in message
    assert "Missing" not in message
    assert "variant='official' has the keys stage.SpatialGate.spatial.bn.weight, " in message


def test_biases_without_a_place():
    message = errors_of(CBAM(32), PUBLIC["mmyolo"](32, 16).state_dict())
    for layer in ("channel_attention.fc.0.conv", "channel_attention.fc.1.conv", "spatial_attention.conv.conv"):
        assert f'"{layer}.bias"' in message
    message = errors_of(CBAM(32), CBAM(32, bias=True, norm=True).state_dict())
    assert message.count("ca.fc1.bias") == message.count("sa.bn.weight") == 1


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_missing_keys():
    message = errors_of(CBAM(32, variant="official"), PUBLIC["leomjl"](32, 16).state_dict())
    assert '"ca.fc1.bias", "ca.fc2.bias"' in message and '"sa.bn.running_mean"' in message
    message = errors_of(CBAM(32), {"ca.fc.0.weight": torch.zeros(2, 32, 1, 1)})
    assert 'Missing key(s) in state_dict: "ca.fc2.weight", "sa.conv1.weight"' in message.replace("\n\t", " ")


def test_unknown_key():
    message = errors_of(CBAM(32), CBAM(32).state_dict() | {"ca.fc3.weight": torch.zeros(1)})
    assert 'Unexpected key(s) in state_dict: "ca.fc3.weight"' in message


@pytest.mark.parametrize("variant", ["official", "ultralytics"])
def test_wrong_shapes(variant):
    public = PUBLIC[variant](64, 16).state_dict()
    message = errors_of(CBAM(32, variant=variant), public)
    assert "size mismatch for ca.fc1.weight" in message


def test_light_checkpoint_in_a_full_module():
    message = errors_of(CBAM(32, variant="timm"), PUBLIC["timm_light"](32, 16).state_dict())
    assert "size mismatch for sa.conv1.weight" in message


def test_ambiguous_order_warns():
    state = PUBLIC["leomjl"](32, 16).state_dict()
    module = CBAM(32)
    with pytest.warns(
        UserWarning, match="its keys, those of leomjl, are ambiguous; assuming spatial_order='mean_max'; build"
    ):
        module.load_state_dict(state, strict=True)
    assert torch.equal(module.sa.conv1.weight, state["spatial_attention.conv.weight"])


def test_ambiguous_names_warn_once():
    """The same names with and without the residual: a module without it assumes the copy without it."""
    state = {f"{i}.{n}": t for i in (0, 1) for n, t in PUBLIC["external_attention_yolo"](32, 16).state_dict().items()}
    model = nn.Sequential(CBAM(32, spatial_bias=True), CBAM(32, spatial_bias=True))
    with pytest.warns(
        UserWarning,
        match="those of external_attention, external_attention_yolo, are ambiguous; assuming .*residual=False",
    ) as caught:
        model.load_state_dict(state, strict=True)
        model.load_state_dict(state, strict=True)
    assert len(caught) == 1
    assert torch.equal(model[1].sa.conv1.weight, state["1.sa.conv.weight"].flip(1))


def test_a_difference_that_the_state_does_not_show_warns():
    module = CBAM(32, 16, 7, bias=True, spatial_bias=False)
    with pytest.warns(UserWarning, match="'peachypie98' has residual=True, unlike this module"):
        module.load_state_dict(PUBLIC["peachypie98"](32, 16).state_dict(), strict=True)
    with pytest.warns(UserWarning, match="export: 'peachypie98' has residual=True, unlike this module"):
        export_state_dict(module, "peachypie98")


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


def test_export_without_a_place():
    model = nn.Sequential(CBAM(32, variant="official"))
    with pytest.raises(
        ValueError, match=r"cannot export to variant 'tutorial': unexpected 0.ca.fc1.bias, .*0.sa.bn.weight"
    ):
        export_state_dict(model, "tutorial")
    with pytest.raises(ValueError, match=r"cannot export to variant 'timm': missing sa.bn.bias"):
        export_state_dict(CBAM(32), "timm")
    with pytest.raises(ValueError, match=r"unexpected sa.conv1.weight \(the switch maps is 'mean', there it is 'both'"):
        export_state_dict(CBAM(32, variant="timm_light"), "timm")
    with pytest.raises(ValueError, match="model must have a CBAM"):
        export_state_dict(torchvision.models.resnet18(), "official")
    with pytest.raises(
        ValueError, match="variant must be a name in VARIANTS, got 'oficial'; the nearest names are official"
    ):
        export_state_dict(CBAM(32), "oficial")


def test_export_of_one_module_under_two_names():
    model = nn.ModuleDict({"a": CBAM(32)})
    model["b"] = model["a"]
    names = [f"channelattention.{fc}.weight" for fc in ("fc1", "fc2")] + ["spatialattention.conv1.weight"]
    assert [*export_state_dict(model, "bubbliiiing")] == [f"{outer}.{n}" for outer in "ab" for n in names]


@pytest.mark.parametrize(
    "change,extra",
    [
        (parametrizations.weight_norm, "ca.fc1.parametrizations.weight.original0, "),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "ca.fc1.weight_orig, 0.ca.fc1.weight_mask"),
    ],
    ids=["weight_norm", "pruning"],
)
def test_export_of_other_state(change, extra):
    model = nn.Sequential(CBAM(32))
    change(model[0].ca.fc1)
    with pytest.raises(ValueError, match=f"cannot export to variant 'bubbliiiing': unexpected 0.{extra}"):
        export_state_dict(model, "bubbliiiing")


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
