"""Insertion into ResNet's blocks: refused where a block does more than its class says."""

import copy
import random
import types

import numpy as np
import pytest
import torch
from insertion import assert_refused, count, network, small
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from cbam_fused import insert_cbam

LIMIT = 1000  # a variable that a forward reads


class Drops(BasicBlock):
    """Stochastic depth that a test of one draw, or in eval mode, misses."""

    def forward(self, x):
        if self.training and random.random() < 1e-6:
            return torch.relu(x)
        return super().forward(x)


class DropsByNumpy(Bottleneck):
    def forward(self, x):
        y = super().forward(x)
        return torch.relu(x) if self.training and np.random.random() < 1e-6 else y


class DropsByTorch(BasicBlock):
    def forward(self, x):
        if self.training and torch.rand(()) < 1e-6:
            return torch.relu(x)
        return super().forward(x)


class Noisy(BasicBlock):
    def forward(self, x):
        y = super().forward(x)
        return y + 1e-12 * torch.randn_like(y) if self.training else y


class Later(BasicBlock):
    seen = 0

    def forward(self, x):
        self.seen += 1
        return super().forward(x) if self.seen < limit_of_calls() else x


def limit_of_calls():
    return 1000


class ReadsVariable(BasicBlock):
    def forward(self, x):
        return super().forward(x) if LIMIT > 10 else x


class ReadsVariableInMethod(BasicBlock):
    def shortcut(self, x):
        return x if LIMIT > 10 else x * 2

    def forward(self, x):
        return super().forward(self.shortcut(x))


class BySize(BasicBlock):
    def forward(self, x):
        return super().forward(x) if x.shape[-1] < 100 else x


class ByAttribute(BasicBlock):
    """Equals its parent while an attribute keeps its value; the attribute is part of the block."""

    scale = 1.0

    def forward(self, x):
        return super().forward(x) * self.scale


@pytest.mark.parametrize(
    "block,reason",
    [
        (Drops(8, 8), "does more than return relu"),
        (DropsByNumpy(8, 2), "does more than return relu"),
        (DropsByTorch(8, 8), "does more than return relu"),
        (Noisy(8, 8), "does something else in training"),
        (Later(8, 8), "does more than return relu"),
        (ReadsVariable(8, 8), "reads the variable LIMIT"),
        (ReadsVariableInMethod(8, 8), "reads the variable LIMIT"),
        (BySize(8, 8), "torch.fx"),
        (ByAttribute(8, 8), "returns something else"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
@pytest.mark.parametrize("training", [True, False])
def test_in_block_is_refused_where_a_block_does_more(block, reason, training):
    last = "bn3" if hasattr(block, "bn3") else "bn2"
    model = network(BasicBlock(8, 8), copy.deepcopy(block)).train(training)
    assert_refused(
        model, rf"'2' looks like a block of ResNet but .*{reason}.*; .* such as '2\.{last}'", where="in_block"
    )
    inserted = insert_cbam(model, [f"2.{last}"], example_input=small())  # as in the message
    assert count(model, inserted, small(), True) == [1]


def test_in_block_of_a_forward_on_the_instance():
    model = network(BasicBlock(8, 8))
    model[1].forward = types.MethodType(BasicBlock.forward, model[1])
    assert_refused(model, "'1' looks like a block of ResNet but has a forward that was set on", where="in_block")
    model = network(BasicBlock(8, 8))
    old = model[1].conv1.forward  # deeper: the layer is called with its own forward
    model[1].conv1.forward = lambda x: old(x) * 2
    plain, x = copy.deepcopy(model).eval(), small()
    inserted = insert_cbam(model.eval(), where="in_block", example_input=x)
    (cbam,) = inserted.values()
    plain[1].bn2.register_forward_hook(lambda m, args, y: cbam(y))
    torch.testing.assert_close(model(x), plain(x))


def test_in_block_keeps_what_is_done_to_the_activation():
    """A hook of relu runs twice, and another activation in its place is used, also if added later."""
    model = network(BasicBlock(8, 8)).eval()
    (cbam,) = insert_cbam(model, where="in_block", example_input=small()).values()
    plain = network(BasicBlock(8, 8)).eval()
    plain[1].bn2.register_forward_hook(lambda m, args, y: cbam(y))
    torch.testing.assert_close(model(small()), plain(small()))
    runs = []
    model[1].relu.register_forward_hook(lambda *_: runs.append(1))
    torch.testing.assert_close(model(small()), plain(small()))
    assert len(runs) == 2
    for m in (model, plain):
        m[1].relu = nn.LeakyReLU(0.2)
    torch.testing.assert_close(model(small()), plain(small()))
    leaky = network(BasicBlock(8, 8))
    leaky[1].relu = nn.SiLU()
    assert list(insert_cbam(leaky, where="in_block", example_input=small())) == ["1.cbam"]
