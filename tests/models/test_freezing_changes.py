"""unfreeze after a part of the model was replaced, wrapped, moved or parametrized."""

import copy

import pytest
import torch
from backbones import image, small_resnet
from freezing import names, resnet_with_cbam, trained
from public import PUBLIC, ChannelMask
from torch import nn
from torch.nn.utils import parametrize

from cbam_fused import replace_cbam
from cbam_fused.surgery import freeze_except, parameter_table, remove_cbam, unfreeze


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
