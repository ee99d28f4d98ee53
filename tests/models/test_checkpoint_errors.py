"""State_dicts that do not fit: errors and warnings of load_state_dict and export_state_dict."""

import pytest
import torch
import torchvision
from public import PUBLIC
from torch import nn
from torch.nn.utils import parametrizations, prune

from cbam_fused import CBAM, export_state_dict

pytestmark = pytest.mark.usefixtures("fresh_warnings")


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
