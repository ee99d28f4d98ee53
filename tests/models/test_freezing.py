"""freeze_except, unfreeze and the table of parameters."""

import copy
import re

import pytest
import torch
from backbones import BiasedCBAM, UNet, image, same_state, small_resnet
from public import PUBLIC, ChannelMask
from torch import nn
from torch.nn.utils import parametrize

from cbam_fused import CBAM, replace_cbam
from cbam_fused.surgery import freeze_except, insert_cbam, parameter_table, remove_cbam, unfreeze


def resnet_with_cbam(**options) -> nn.Module:
    model = small_resnet()
    insert_cbam(model, where="each_layer", example_input=image(1), **options)
    return model


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def names(model: nn.Module, pattern: str) -> set[str]:
    return {n for n, _ in model.named_parameters() if re.match(pattern, n)}


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


def test_replace_cbam_between_freeze_and_unfreeze():
    """Names that differ from the fused module's: the record gets the new names."""
    conv, cbam = nn.Conv2d(3, 16, 3), PUBLIC["yolov5"](16, 4)
    cbam.channel_attention.f1.weight.requires_grad_(False)
    model = nn.ModuleDict({"conv": conv, "cbam": cbam, "fc": nn.Linear(16, 2)})
    freeze_except(model, "fc")
    assert replace_cbam(model).replaced == {"cbam": "yolov5"} and trained(model) == {"fc.weight", "fc.bias"}
    unfreeze(model)
    assert trained(model) == {n for n, _ in model.named_parameters()} - {"cbam.ca.fc1.weight"}
    freeze_except(model, "fc")
    model["late"] = PUBLIC["yolov5"](16, 4)
    assert replace_cbam(model).replaced == {"late": "yolov5"}
    unfreeze(model)
    assert trained(model) == {n for n, _ in model.named_parameters()} - {"cbam.ca.fc1.weight"}
    masked = nn.ModuleDict({"mask": ChannelMask(16, 4), "fc": nn.Linear(16, 2)})
    freeze_except(masked, "fc")
    assert replace_cbam(masked).replaced == {"mask": "tutorial channel mask"}
    unfreeze(masked)
    assert len(trained(masked)) == 4


def test_replace_cbam_of_what_is_frozen_by_itself():
    model = nn.Sequential(PUBLIC["yolov5"](16, 4))
    freeze_except(model[0], "channel_attention")
    assert "it was frozen by its own call of freeze_except" in replace_cbam(model).skipped["0"]
    unfreeze(model[0])


def test_unfreeze_with_a_parametrization():
    model = small_resnet()
    freeze_except(model, "fc")
    before, classes = trained(model), [type(m) for m in model.modules()]
    parametrize.register_parametrization(model.layer1[0].bn1, "weight", nn.Identity())
    with pytest.raises(ValueError, match=r"unfreeze: the class of layer1.0.bn1 changed after freeze_except"):
        unfreeze(model)
    parametrize.remove_parametrizations(model.layer1[0].bn1, "weight")
    assert trained(model) == before and [type(m) for m in model.modules()] == classes
    unfreeze(model)
    assert len(trained(model)) == len([*model.parameters()])


def wrap(model):
    model.layer2 = nn.Sequential(model.layer2, nn.Identity())


def compile_a_part(model):
    model.layer2 = torch.compile(model.layer2, backend="eager")


def put_in_a_copy(model):
    model.layer2 = nn.ModuleDict({"inner": copy.deepcopy(model.layer2)})


def move(model):
    model.other, model.layer2 = model.layer2, nn.Identity()


def parametrized(model):
    parametrize.register_parametrization(model.layer1[0].conv1, "weight", nn.Identity())
    nn.utils.parametrizations.weight_norm(model.layer2[0].conv1)


def freeze_the_part_again(model):
    part = small_resnet().layer2
    freeze_except(part, "0.conv1")
    model.layer2 = part


CHANGES = [wrap, compile_a_part, put_in_a_copy, move, parametrized, freeze_the_part_again]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bn_eval", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stays_frozen_when_a_part_was_changed_in_between(change, bn_eval):
    model = resnet_with_cbam()
    freeze_except(model, bn_eval=bn_eval)
    change(model)
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
    assert not any("Frozen" in c.__name__ for m in model.modules() for c in type(m).__mro__)
    with pytest.raises(ValueError, match="freeze_except was not called"):
        unfreeze(model)


def test_what_was_frozen_before_is_frozen_again_wherever_it_went():
    model = resnet_with_cbam()
    model.layer2.requires_grad_(False)
    expected = {id(p) for p in model.layer2.parameters()}
    freeze_except(model)
    wrap(model)
    unfreeze(model)
    assert {id(p) for p in model.parameters() if not p.requires_grad} == expected


def test_a_part_that_was_taken_out_is_unfrozen_by_itself():
    model = resnet_with_cbam()
    freeze_except(model)
    part, model.layer2 = model.layer2, nn.Identity()
    unfreeze(model)
    assert not any(p.requires_grad for n, p in part.named_parameters() if "cbam" not in n)
    unfreeze(part)
    assert all(p.requires_grad for p in part.parameters()) and type(part[0].bn1) is nn.BatchNorm2d


def test_a_new_part_is_not_frozen_by_the_name_of_an_old_one():
    model = resnet_with_cbam()
    model.layer2.requires_grad_(False)
    freeze_except(model)
    model.layer2 = small_resnet().layer2
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


def test_what_stays_frozen_is_named():
    model = resnet_with_cbam()
    freeze_except(model)
    model.extra = nn.Linear(3, 3).requires_grad_(False)
    with pytest.warns(UserWarning, match=r"unfreeze: extra\.weight, extra\.bias were added frozen after freeze_except"):
        unfreeze(model)
    assert trained(model) == {n for n, _ in model.named_parameters()} - {"extra.weight", "extra.bias"}


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


@pytest.mark.parametrize("wrapper", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_of_the_whole(wrapper):
    for first, second in ((True, False), (False, True), (True, True)):
        model = resnet_with_cbam()
        wrapped = wrapper(model)
        freeze_except(wrapped if first else model)
        assert trained(model) == names(model, r".*\.cbam\.|fc\.")
        unfreeze(wrapped if second else model)
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("wrapper", [lambda m: torch.compile(m, backend="eager"), nn.Sequential])
def test_a_wrapper_around_an_inserted_cbam(wrapper):
    model = resnet_with_cbam()
    model.layer2.cbam = wrapper(model.layer2.cbam)
    freeze_except(model, "cbam")
    assert trained(model) == names(model, r".*\.cbam\.")
    rows, _ = parameter_table(model)
    assert {r.part: r.trainable for r in rows}["cbam"] == rows[-1].trainable > 0
    unfreeze(model)
    model(image()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert remove_cbam(model) == [f"layer{i}.cbam" for i in (1, 2, 3, 4)]
    assert {type(m) for m in model.modules()} == {type(m) for m in small_resnet().modules()}


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
