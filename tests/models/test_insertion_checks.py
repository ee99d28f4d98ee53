"""After an insertion the model runs: its state stays, and changes that cannot be undone are refused."""

import random
import types

import numpy as np
import pytest
import torch
from anatomy import anatomy, generators
from backbones import image, small_resnet
from insertion import assert_refused, network, small
from torch import nn
from torchvision.models.resnet import BasicBlock

from cbam_fused import CBAM, insert_cbam, remove_cbam


def test_state_of_every_kind_stays():
    """BatchNorm's statistics, counters, lists, generators of the model and the three global ones."""

    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout()
            self.register_buffer("total", torch.zeros(()))
            self.calls, self.history, self.facts = 0, [], {"last": None}
            self.random, self.rng = random.Random(1), torch.Generator().manual_seed(2)
            self.numpy, self.helper = np.random.default_rng(3), types.SimpleNamespace(step=0)

        def forward(self, x):
            self.calls += 1
            self.history.append(self.calls)
            self.facts["last"] = self.random.random() + random.random() + np.random.random()
            self.helper.step += self.numpy.integers(5)
            self.total += 1
            self.ema = self.total * 2
            self.conv.weight.data.clamp_(-0.01, 0.01)
            return self.drop(self.bn(self.conv(x))) + torch.rand((), generator=self.rng)

    def state(m):
        own = (m.calls, [*m.history], dict(m.facts), m.random.getstate(), m.rng.get_state().tolist(), vars(m).keys())
        more = (m.helper.step, m.numpy.bit_generator.state, m.training)
        return *own, *more, {k: v.tolist() for k, v in m.state_dict().items() if "cbam" not in k}

    for mode in (True, False):
        model = Remembers().train(mode)
        before = state(model), generators()
        with torch.random.fork_rng(devices=[]):
            (cbam,) = insert_cbam(model, ["bn"], example_input=small()).values()
        assert (state(model), generators()) == before and cbam.training == mode
        remove_cbam(model)
        assert (state(model), generators()) == before


def test_the_generators_move_as_if_the_modules_were_built():
    torch.manual_seed(0)
    plain = CBAM(64), CBAM(128)
    expected = generators()
    model = small_resnet()
    torch.manual_seed(0)
    inserted = insert_cbam(model, ["layer1", "layer2"], example_input=image(1))
    assert generators() == expected
    torch.testing.assert_close([m.state_dict() for m in inserted.values()], [m.state_dict() for m in plain])


def test_a_factory_that_fails_and_an_interruption_leave_nothing():
    def fails(channels, reduction, kernel_size):
        torch.rand(3)
        if channels == 8:
            raise KeyboardInterrupt
        return CBAM(channels)

    model = network(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
    before, states = anatomy(model), generators()
    with pytest.raises(KeyboardInterrupt):
        insert_cbam(model, ["1", "2"], factory=fails, example_input=small())
    with pytest.raises(ValueError, match=r"CBAM after '1' the model does not run \(RuntimeError: .* must match"):
        insert_cbam(model, ["1"], factory=lambda c, r, k: Adds(c + 1), example_input=small())
    assert anatomy(model) == before and generators() == states


class Adds(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x):
        return x + self.weight


def test_meta_half_frozen_and_data_parallel():
    with torch.device("meta"):
        model = small_resnet()
    assert len(insert_cbam(model, where="in_block", example_input=image(1).to("meta"))) == 4
    assert {p.device.type for p in model.parameters()} == {"meta"}
    half = small_resnet().half().requires_grad_(False).eval()
    inserted = insert_cbam(half, where="in_block", example_input=image(1).half())
    assert {p.dtype for p in half.parameters()} == {torch.float16} and not any(m.training for m in half.modules())
    assert {n for n, p in half.named_parameters() if p.requires_grad} == {
        f"{n}.{p}" for n, m in inserted.items() for p, _ in m.named_parameters()
    }
    parallel = nn.DataParallel(small_resnet())
    inserted = insert_cbam(parallel, where="each_layer", example_input=image(1))
    assert list(inserted) == [f"module.layer{i}.cbam" for i in (1, 2, 3, 4)] == remove_cbam(parallel)


def test_compiled_before_the_insertion():
    """Compiled code runs neither without inserted modules nor with removed ones."""
    model = small_resnet().eval()
    compiled, x = torch.compile(model, backend="eager"), image()
    with torch.no_grad():
        before = compiled(x)
        insert_cbam(model, where="stem_last", example_input=x)
        with_cbam = compiled(x)
        torch.testing.assert_close(with_cbam, model(x))
        assert not torch.allclose(with_cbam, before)
        remove_cbam(model)
        torch.testing.assert_close(compiled(x), before)
        inserted = insert_cbam(compiled, where="in_block", example_input=x)
        assert list(inserted) == [f"_orig_mod.layer{i}.0.cbam" for i in (1, 2, 3, 4)]
        model.layer1 = torch.compile(model.layer1, backend="eager")
        assert list(insert_cbam(model, ["layer1"], example_input=x)) == ["layer1._orig_mod.cbam"]
        assert sorted(remove_cbam(model)) == ["layer1._orig_mod.0.cbam", "layer1._orig_mod.cbam"] + [
            f"layer{i}.0.cbam" for i in (2, 3, 4)
        ]
        torch.testing.assert_close(model(x), before)


def scripted() -> nn.Module:
    return network(torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())))


def test_what_cannot_be_changed_is_named():
    assert_refused(scripted(), "after: '1' is a ScriptModule", ["1"])
    assert_refused(scripted(), r"after: '1\.0' is a ScriptModule", ["1.0"])
    assert list(insert_cbam(scripted(), ["0"], example_input=small())) == ["0.cbam"]
    traced = torch.jit.trace(network(nn.Conv2d(8, 8, 1)), small())
    with pytest.raises(ValueError, match="the model is a ScriptModule"):
        insert_cbam(traced, ["1"], example_input=small())
    with pytest.raises(ValueError, match="insert_cbam: 0 has no parameters before the first forward pass"):
        insert_cbam(nn.Sequential(nn.LazyConv2d(8, 3)), ["0"], example_input=small())

    class Counts(nn.Module):
        def forward(self, x):
            return (x > 0).int()

    assert_refused(network(Counts()), "'1' must return floating-point values, got torch.int32", ["1"])


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FSDPModule"])
def test_a_wrapper_that_averages_gradients_comes_after(name):
    """Later parameters would silently not be averaged."""
    model = small_resnet()
    model.layer1.__class__ = type("Wrapped", (type(name, (), {}), nn.Sequential), {})
    with pytest.raises(ValueError, match=rf"layer1 is a {name}, .* insert first, then wrap"):
        insert_cbam(model, ["layer2"], example_input=image(1))


def test_removal_of_what_was_changed_since():
    model = network(BasicBlock(8, 8), nn.Conv2d(8, 8, 1))
    inserted = insert_cbam(model, where="in_block", example_input=small())
    insert_cbam(model, ["2"], example_input=small())
    model[1].__class__ = type("Sharded", (type("FSDPModule", (), {}), type(model[1])), {})
    with pytest.raises(ValueError, match="remove_cbam: the class of 1 changed after insert_cbam"):
        remove_cbam(model)
    assert hasattr(model[2], "cbam") and list(inserted) == ["1.cbam"]
    model[1].__class__ = type(model[1]).__bases__[1]
    del model[2].cbam
    assert remove_cbam(model) == ["1.cbam", "2.cbam"] and type(model[1]) is BasicBlock
    assert model(small()).shape == (2, 8, 12, 12)
