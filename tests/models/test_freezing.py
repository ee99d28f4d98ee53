"""freeze_except, unfreeze and the table of parameters."""

import copy
import re

import pytest
import torch
from backbones import BiasedCBAM, UNet, image, same_state, small_resnet
from freezing import names, resnet_with_cbam, trained
from torch import nn

from cbam_fused import CBAM
from cbam_fused.surgery import freeze_except, parameter_table, unfreeze


def step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()(image()).square().mean().backward()
    optimizer.step()


def test_only_cbam_and_head_are_trained_by_default():
    model = resnet_with_cbam(factory=lambda *a: BiasedCBAM(*a, norm=True))
    before = copy.deepcopy(model.state_dict())
    freeze_except(model)
    assert trained(model) == names(model, r".*\.cbam\.|fc\.")
    step(model)
    after = model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert {k.split(".")[0] if k.startswith("fc") else k.split(".")[1] for k in moved} == {"cbam", "fc"}
    assert "layer1.cbam.bn.running_mean" in moved, "BatchNorm in a part that is trained follows the data"


def test_frozen_statistics_stay_in_eval_mode():
    model = resnet_with_cbam()
    freeze_except(model)
    assert model.training and not model.bn1.training and not model.layer4[0].bn2.training
    for mode in (True, False, True):
        model.train(mode)
        assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        assert model.layer1.cbam.training == model.layer1.training == mode
    freeze_except(model, "layer4", "head")
    model.train()
    assert model.layer4[0].bn1.training and not model.layer3[0].bn1.training


def test_without_bn_eval_the_statistics_follow_the_data():
    model = resnet_with_cbam()
    freeze_except(model, bn_eval=False)
    before = copy.deepcopy(model.state_dict())
    step(model)
    assert not torch.equal(model.bn1.running_mean, before["bn1.running_mean"])
    assert torch.equal(model.bn1.weight, before["bn1.weight"])


@pytest.mark.parametrize(
    "parts,expected",
    [
        (("layer4.0.conv1", "fc"), r"layer4\.0\.conv1\.|fc\."),
        ((re.compile(r"layer[34]"),), r"layer[34]\."),
        ((lambda name, module: isinstance(module, CBAM), "layer4"), r".*\.cbam\.|layer4\."),
        (("cbam",), r".*\.cbam\."),
        (("head",), r"fc\."),
    ],
)
def test_parts(parts, expected):
    model = resnet_with_cbam()
    freeze_except(model, *parts)
    assert trained(model) == names(model, expected)


def test_unfreeze_restores_what_was():
    model = resnet_with_cbam()
    model.conv1.weight.requires_grad_(False)
    before, classes = trained(model), [type(m) for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    freeze_except(model)
    freeze_except(model, "conv1", "layer4")
    assert trained(model) == names(model, r"conv1\.|layer4\."), "the second call does not add to the first"
    model.train()
    unfreeze(model)
    assert trained(model) == before and [type(m) for m in model.modules()] == classes
    assert all(m.training for m in model.modules()) and same_state(model.state_dict(), state)
    model.eval()
    assert not any(m.training for m in model.modules())
    with pytest.raises(ValueError, match="freeze_except was not called for this ResNet"):
        unfreeze(model)


@pytest.mark.parametrize("first,second", [("layer1", ""), ("", "layer1")], ids=["a part", "the whole"])
def test_a_part_and_the_whole_are_not_frozen_by_a_call_each(first, second):
    model = small_resnet()
    freeze_except(model.get_submodule(first), re.compile(".*conv1"))
    before, classes = trained(model), [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=r"freeze_except: (layer1\.)?0\.bn1 is already frozen by .*; unfreeze that"):
        freeze_except(model.get_submodule(second), re.compile(".*conv2"))
    assert trained(model) == before and [type(m) for m in model.modules()] == classes
    unfreeze(model.get_submodule(first))
    freeze_except(model.get_submodule(second), re.compile(".*conv2"))


def test_a_parameter_shared_with_a_trained_part_is_trained():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    freeze_except(model, "1")
    assert trained(model) == {"0.weight", "1.bias"}


@pytest.mark.parametrize(
    "model,parts,message",
    [
        (small_resnet(), (), r"ResNet has no CBAM; name the parts"),
        (UNet(), ("head",), r"UNet has no child named fc, classifier, head; name its head"),
        (small_resnet(), ("fc", "layr4"), r"freeze_except: the model has no sub-module 'layr4'; .* layer4"),
        (small_resnet(), (re.compile("cbam"),), r"freeze_except must pick at least one sub-module"),
    ],
)
def test_errors_leave_the_model_unchanged(model, parts, message):
    freeze_except(model, "conv1" if hasattr(model, "conv1") else "inc")
    before, classes = trained(model), [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        freeze_except(model, *parts)
    assert trained(model) == before and [type(m) for m in model.modules()] == classes


def test_a_part_without_frozen_statistics_and_the_whole():
    """With bn_eval=False no class marks the part as frozen."""
    model = small_resnet()
    freeze_except(model.layer1, "0.conv1", bn_eval=False)
    before = trained(model)
    with pytest.raises(ValueError, match=r"freeze_except: layer1\.0\.conv1 is already frozen"):
        freeze_except(model, "fc")
    assert trained(model) == before
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


def test_parameter_table():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7))
            self.body, self.fc = nn.Sequential(nn.Conv2d(3, 16, 3), CBAM(16)), nn.Linear(16, 2)

    model = Net()
    freeze_except(model)
    rows, text = parameter_table(model)
    conv, cbam, fc = 3 * 16 * 9 + 16, 2 * 16 + 2 * 49, 34
    total = ("total", 7 + conv + cbam + fc, cbam + fc)
    assert rows == [("(own)", 7, 0), ("body", conv, 0), ("cbam", cbam, cbam), ("fc", fc, fc), total]
    assert text.splitlines()[0].split() == ["part", "parameters", "trainable"]
    assert [line.split() for line in text.splitlines()[1:]] == [[str(v) for v in row] for row in rows]
