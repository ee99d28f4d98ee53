"""After an insertion the calls of CBAM are counted, in stages that call their children in any way."""

import copy

import pytest
import timm
import torch
from backbones import image
from insertion import assert_refused, count, network, small
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock

from cbam_fused import insert_cbam, remove_cbam
from cbam_fused.surgery import attention_maps


class Stage(nn.Module):
    def __init__(self, scale: float = 1, training_scale: float = 1, shortcut: bool = False):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.scale, self.training_scale, self.shortcut = scale, training_scale, shortcut

    def forward(self, x):
        y = x
        for child in self.children():
            y = child(y)
        scale = self.training_scale if self.training else self.scale
        y = y if scale == 1 else y * scale
        return x + y if self.shortcut else y


class LastIsSpecial(nn.Sequential):
    def forward(self, x):
        for child in self[:-1]:
            x = torch.relu(child(x))
        return self[-1](x)


class WalksOverModules(Stage):
    def forward(self, x):
        for module in [*self.modules()][1:]:
            x = module(x)
        return x


@pytest.mark.parametrize("training", [True, False])
def test_stages_that_walk_over_their_children_call_it_once(training):
    model = network(Stage(), nn.ReLU()).train(training)
    plain, before = copy.deepcopy(model), copy.deepcopy(model).eval()
    inserted = insert_cbam(model, ["1"], example_input=small())
    (cbam,) = inserted.values()
    plain[1].register_forward_hook(lambda m, args, y: cbam(y))
    for mode in (True, False):
        assert count(model, inserted, small(), mode) == [1]
        torch.testing.assert_close(model(small()), plain.train(mode)(small()), rtol=0, atol=0)
    remove_cbam(model)
    assert torch.equal(model(small()), before(small()))


@pytest.mark.parametrize(
    "stage,message",
    [
        (Stage(scale=0.5), "'1' calls CBAM among its children but does not return CBAM's result"),
        (Stage(training_scale=0.5), "'1' calls CBAM among its children but does not return CBAM's result"),
        (Stage(shortcut=True), "'1' calls CBAM among its children but does not return CBAM's result"),
        (LastIsSpecial(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), r"'1'"),
        (WalksOverModules(), r"'1'"),
    ],
    ids=["scaled", "scaled in training", "shortcut", "last child", "modules"],
)
def test_stages_whose_result_would_be_another_are_refused(stage, message):
    assert_refused(network(copy.deepcopy(stage)), message, ["1"])


def test_regnet_of_timm():
    stages = ["s1", "s2", "s3", "s4"]
    x = image(2, 32)
    model = timm.create_model("regnetx_002", num_classes=3)
    inserted = insert_cbam(model, stages, example_input=x)
    assert list(inserted) == [f"{s}.cbam" for s in stages]
    assert count(model, inserted, x, True) == count(model, inserted, x, False) == [1, 1, 1, 1]
    model.set_grad_checkpointing()
    assert count(model, inserted, x, True) == [1, 1, 1, 1]
    assert list(attention_maps(model, x)) == list(inserted)


def test_a_forward_on_the_instance_of_a_stage():
    model = network(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    old = model[1].forward
    model[1].forward = lambda x: old(x)
    inserted = insert_cbam(model, ["1"], example_input=small())
    assert count(model, inserted, small(), True) == count(model, inserted, small(), False) == [1]
    model = network(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    layers = [*model[1]]
    model[1].forward = lambda x: layers[1](layers[0](x))  # the child would not be called
    inserted = insert_cbam(model, ["1"], example_input=small())
    assert count(model, inserted, small(), True) == count(model, inserted, small(), False) == [1]


class TwiceInTraining(nn.Module):
    """The place is called more often in training, and so is CBAM."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.conv(x) if self.training else x


def test_once_for_each_call_of_its_place():
    model = TwiceInTraining()
    inserted = insert_cbam(model, ["conv"], example_input=small())
    assert count(model, inserted, small(), True) == [2] and count(model, inserted, small(), False) == [1]
    block = BasicBlock(8, 8)
    model = network(block, block, block)
    inserted = insert_cbam(model, where="in_block", example_input=small())
    assert list(inserted) == ["1.cbam"] and count(model, inserted, small(), True) == [3]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 8, 3), BasicBlock(8, 8)

        def forward(self, x):
            return checkpoint(self.block, self.stem(x), use_reentrant=reentrant)

    model = Checkpointed()
    inserted = insert_cbam(model, where="in_block", example_input=small())
    assert count(model, inserted, small(), True) == [1]
    model(small()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
