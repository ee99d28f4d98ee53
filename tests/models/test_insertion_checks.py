"""After an insertion the model runs and calls are counted: other counts and other changes are refused."""

import copy
import random
import types

import numpy as np
import pytest
import timm
import torch
import torchvision
from anatomy import anatomy, generators
from backbones import image, small_resnet
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from cbam_fused import CBAM, insert_cbam, remove_cbam
from cbam_fused.surgery import attention_maps

LIMIT = 1000  # a variable that a forward reads


def small(side: int = 12) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def network(*blocks: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks)


def assert_refused(model: nn.Module, message: str, *args, **options) -> None:
    before, states = anatomy(model), generators()
    with pytest.raises(ValueError, match=message):
        insert_cbam(model, *args, **{"example_input": small(), **options})
    assert anatomy(model) == before and generators() == states


def count(model: nn.Module, inserted: dict, x, training: bool) -> list[int]:
    calls = dict.fromkeys(inserted, 0)

    def hook(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    hooks = [m.register_forward_hook(hook(n)) for n, m in inserted.items()]
    model.train(training)(x)
    for h in hooks:
        h.remove()
    return [*calls.values()]


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


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8 * 10 * 10, 2)

    def forward(self, image, mask):
        return {"logits": self.fc((self.a(image) + self.b(mask)).flatten(1))}


class OfADictionary(TwoInputs):
    def forward(self, batch):
        return super().forward(batch["image"], batch["mask"])


X, MASK = small(), small()[:, :1]


@pytest.mark.parametrize(
    "model,example",
    [
        (TwoInputs(), (X, MASK)),
        (TwoInputs(), {"image": X, "mask": MASK}),
        (TwoInputs(), {"mask": MASK, "image": X}),
        (OfADictionary(), {"image": X, "mask": MASK}),
        (OfADictionary(), ({"image": X, "mask": MASK},)),
        (OfADictionary(), {"batch": {"image": X, "mask": MASK}}),
    ],
)
def test_models_of_other_inputs(model, example):
    model = copy.deepcopy(model)
    before = anatomy(model)
    for options, shape in (({}, r"\(1, 3, 224, 224\)"),):
        message = rf"example_input must be a tensor, a tuple .* or a dictionary: {type(model).__name__} .* {shape}"
        with pytest.raises(ValueError, match=message):
            insert_cbam(model, ["a"], **options)
    assert anatomy(model) == before
    assert list(insert_cbam(model, ["a", "b"], example_input=example)) == ["a.cbam", "b.cbam"]
    assert list(attention_maps(model, example)) == ["a.cbam", "b.cbam"]


def test_a_model_of_a_fixed_size_and_one_that_takes_a_list():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 2))
    with pytest.raises(ValueError, match=r"example_input must be .* noise of shape \(1, 1, 224, 224\)"):
        insert_cbam(model, ["0"])
    assert list(insert_cbam(model, ["0"], example_input=torch.zeros(1, 1, 28, 28))) == ["0.cbam"]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # the model's error for the user's example
        insert_cbam(model, ["0"], example_input=torch.zeros(1, 1, 29, 28))
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    images = [torch.rand(3, 64, 48), torch.rand(3, 40, 64)]  # it needs targets in training, so only eval mode runs
    inserted = insert_cbam(detector, ["backbone.features.0.0"], example_input=images)
    assert count(detector, inserted, images, False) == [1]


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

    def forward(self, a, b):
        return self.encoder(a) - self.encoder(b)


def test_a_shared_encoder():
    model = Siamese()
    inserted = insert_cbam(model, ["encoder"], example_input=(X, X.flip(3)))
    with torch.no_grad():
        assert model(X, X).abs().max() == 0
    calls = []
    inserted["encoder.cbam"].register_forward_hook(lambda *_: calls.append(1))
    model(X, X)
    assert len(calls) == 2


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
