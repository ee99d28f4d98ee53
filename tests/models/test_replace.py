"""replace_cbam: it replaces what it proves equal, reports the rest, and does not change the model's results."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from public import PUBLIC, ChannelMask, SpatialMask, X, filled, max_first, mean_first, results, under_public_names
from torch import nn

from cbam_fused import CBAM, export_state_dict, reference, replace_cbam, routing


def network(attention):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), attention, nn.Conv2d(16, 2, 1)).double()


ALIKE = {"timm_se": "torchvision_se"}  # names and function are the same; only default widths differ


@pytest.mark.parametrize("variant", PUBLIC)
def test_every_public_cbam(variant):
    model = network(filled(PUBLIC[variant](16, 4 if variant != "luuuyi" else 16)))
    state, expected = copy.deepcopy(model.state_dict()), results(copy.deepcopy(model))
    report = replace_cbam(model)
    assert report.replaced == {"2": ALIKE.get(variant, variant)} and not report.skipped and type(model[2]) is CBAM
    for (y, dx, grads), (y0, dx0, grads0) in zip(results(model), expected, strict=True):
        torch.testing.assert_close(y, y0)
        torch.testing.assert_close(dx, dx0)
        grads = under_public_names(model, grads, variant)
        torch.testing.assert_close({n: grads[n] for n in grads0}, grads0)
    model.load_state_dict(state, strict=True)
    assert export_state_dict(model, variant).keys() == state.keys()


def timm_resnet18():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    model = timm.create_model("resnet18", block_args={"attn_layer": "cbam"}, num_classes=10, zero_init_last=False)
    return model


def test_timm_resnet18():
    """Eight modules; logits and every gradient equal up to twice float32's error."""
    model = timm_resnet18()
    original = copy.deepcopy(model)
    report = replace_cbam(model)
    assert report.replaced == {f"layer{i}.{j}.se": "timm" for i in (1, 2, 3, 4) for j in (0, 1)}
    assert not report.skipped and not report.fused
    x = torch.randn(4, 3, 64, 64)
    for (y, dx, grads), (y0, dx0, grads0) in zip(results(model, x), results(original, x), strict=True):
        torch.testing.assert_close(y, y0, rtol=1e-4, atol=1e-4)
        grads = under_public_names(model, grads, "timm")
        for name, expected in (grads0 | {"x": dx0}).items():
            got = dx if name == "x" else grads[name]
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert all(block.se.backend_for(x).name == "cpu" for block in model.train().layer1)
    model.load_state_dict(original.state_dict(), strict=True)
    assert [*export_state_dict(model, "timm")] == [*original.state_dict()]


def test_ties_of_timm():
    """Tied maxima share the gradient as in timm."""
    gradients = []
    x = X.repeat(1, 6, 1, 1)[:, :16].relu()
    for change in (lambda model: None, replace_cbam):
        model = nn.Sequential(filled(PUBLIC["timm"](16, 4)))
        change(model)
        gradients.append(results(model, x)[0][1])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_unit_of_pytorchcv():
    models = pytest.importorskip("pytorchcv.models.cbamresnet", reason="pytorchcv is not installed")
    model = filled(models.CbamResUnit(8, 32, 1, bottleneck=True))
    original = copy.deepcopy(model)
    assert replace_cbam(model).replaced == {"cbam": "pytorchcv"}
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    for got, expected in zip(results(model, x), results(original, x), strict=True):
        torch.testing.assert_close(got[:2], expected[:2])


class Thing(nn.Module):
    """A CBAM with unique names."""

    def __init__(self, order=mean_first):
        super().__init__()
        self.a, self.b = ChannelMask(16, 3), SpatialMask(order)

    def forward(self, x):
        x = x * self.a(x)
        return x * self.b(x)


class Masks(Thing):
    """Not a CBAM: it adds its input."""

    def forward(self, x):
        y = x * self.a(x)
        return y * self.b(y) + x.relu()


@pytest.mark.parametrize("order", [mean_first, max_first])
def test_names_do_not_count(order):
    model = network(Thing(order))
    expected = results(model)
    weight = model[2].b.look.weight.detach().clone()
    description = "tutorial" if order is mean_first else "tutorial with spatial_order='max_mean'"
    assert replace_cbam(model).replaced == {"2": description}
    assert torch.equal(model[2].sa.conv1.weight, weight if order is mean_first else weight.flip(1))
    for got, want in zip(results(model), expected, strict=True):
        torch.testing.assert_close(got[:2], want[:2])


def test_weights_do_not_hide_the_function():
    """With BatchNorm's initial weight 0 of the official networks, both orders have the same output."""
    module = PUBLIC["official"](16, 4)
    nn.init.zeros_(module.SpatialGate.spatial.bn.weight)
    weight = module.SpatialGate.spatial.conv.weight.detach().double()
    model = network(module)
    assert replace_cbam(model).replaced == {"2": "official"}
    assert torch.equal(model[2].sa.conv1.weight, weight.flip(1))


class DualMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.spatial = ChannelMask(16, 3), ChannelMask(16, 3), SpatialMask()

    def forward(self, x):
        x = x * (self.one(x) + self.two(x))
        return x * self.spatial(x)


class CBAMDualMLP(DualMLP):
    pass


class CBAMWithDropout(Thing):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, self.training)


class CBAMParallel(Thing):
    def forward(self, x):
        return x * self.a(x) * self.b(x)


class CBAMWithMaps(Thing):
    def forward(self, x):
        mask = self.a(x)
        return x * mask, mask


class ChannelAttentionModule(nn.Module):
    """Self-attention between channels, as in DANet under this name."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x):
        flat = self.fc2(self.fc1(x)).flatten(2)
        return (flat @ flat.mT).softmax(-1).matmul(x.flatten(2)).view_as(x) + x


SKIPPED = {
    "a dropout": (CBAMWithDropout, "its forward draws random numbers"),
    "parallel": (CBAMParallel, "in eval mode it is no known function"),
    "two results": (CBAMWithMaps, "it does not run on a map .*: TypeError: it returns a tuple"),
    "self-attention": (ChannelAttentionModule, "in eval mode it is no known function"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped(name):
    kind, reason = SKIPPED[name]
    model = nn.Sequential(nn.Conv2d(3, 16, 3), kind())
    report = replace_cbam(model)
    assert type(model[1]) is kind and [*report.skipped] == ["1"] and "1" not in report.replaced
    assert re.fullmatch(reason, report.skipped["1"])


def test_masks_inside_of_what_is_no_cbam():
    model = network(CBAMParallel())
    expected = results(model)
    report = replace_cbam(model)
    assert report.replaced == {"2.a": "tutorial channel mask", "2.b": "tutorial spatial mask"} and not report.fused
    for got, want in zip(results(model), expected, strict=True):
        torch.testing.assert_close(got[:2], want[:2])


def test_two_mlps():
    report = replace_cbam(nn.Sequential(CBAMDualMLP()))
    assert report.replaced.keys() == {"0.one", "0.two", "0.spatial"}


class CBAMOfSomethingElse(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x))


def test_other_layers_under_the_name():
    report = replace_cbam(network(CBAMOfSomethingElse()))
    assert report.skipped == {"2": "its layers are not those of a CBAM"} and not report.replaced


def test_obstacles():
    hooked = network(Thing())
    hooked[2].a.register_forward_hook(lambda *_: None)
    assert "its sub-module a has hooks" in replace_cbam(hooked).skipped["2"]
    shared = nn.Sequential(Thing(), Thing())
    shared[1].a.squeeze.weight = shared[0].a.squeeze.weight
    reason = "its parameter a.squeeze.weight is shared with another module"
    assert replace_cbam(shared).skipped["0"] == reason
    watched = network(Thing())
    watched[2].b.look.weight.register_hook(lambda grad: grad)
    assert "its parameter b.look.weight has hooks" in replace_cbam(watched).skipped["2"]
    assert replace_cbam(Thing()).skipped == {"": "it is the model itself"}


def test_what_is_kept():
    model = network(PUBLIC["official"](16, 4)).to(torch.bfloat16)
    old = model[2]
    old.eval()
    old.SpatialGate.spatial.bn.eps, old.SpatialGate.spatial.bn.momentum = 1e-3, 0.3
    old.ChannelGate.mlp.get_submodule("1").weight.requires_grad_(False)
    calls = []
    handle = old.register_forward_hook(lambda *_: calls.append(1))
    replace_cbam(model)
    assert not calls
    new = model[2]
    assert new is not old and not new.training and model.training and not new.sa.bn.training
    assert (new.sa.bn.eps, new.sa.bn.momentum) == (1e-3, 0.3)
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert [n for n, p in new.named_parameters() if not p.requires_grad] == ["ca.fc1.weight"]
    model(X.bfloat16())
    assert calls == [1]
    handle.remove()
    model(X.bfloat16())
    assert calls == [1]


def test_random_numbers_of_the_caller_do_not_move():
    model = network(Thing())
    state = torch.get_rng_state()
    assert replace_cbam(model).replaced
    assert torch.equal(torch.get_rng_state(), state)


def test_generators_of_the_gpus_do_not_move(monkeypatch):
    """torch.manual_seed also seeds them."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    model = nn.Sequential(Masks())
    assert replace_cbam(model).fused == {"0": [("a", "b")]} and seeds == []


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton", "reference"])
def test_where_a_backend_is_demanded(backend, monkeypatch):
    """The proof runs on the CPU, also for a network that moves to a GPU later."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("cbam_fused.routing.wanted", backend)
    report = replace_cbam(nn.Sequential(Thing(), Masks()))
    assert report.replaced == {"0": "tutorial", "1.a": "tutorial channel mask", "1.b": "tutorial spatial mask"}
    assert report.fused == {"1": [("a", "b")]} and routing.wanted == backend


def test_under_no_grad():
    with torch.no_grad():
        assert replace_cbam(network(Thing())).replaced


def test_one_module_in_two_places():
    thing = Thing()
    model = nn.ModuleDict({"first": thing, "second": nn.Sequential(thing)})
    assert [*replace_cbam(model).replaced] == ["first"]
    assert type(model["first"]) is CBAM and model["second"][0] is model["first"]


def test_again_and_our_own():
    model = network(Thing())
    replace_cbam(model)
    assert replace_cbam(model).replaced == {}
    plain = network(reference.CBAM(16, variant="official"))
    expected = results(copy.deepcopy(plain))
    assert replace_cbam(plain).replaced == {"2": "tutorial with bias=True, norm=True"}
    for got, want in zip(results(plain), expected, strict=True):
        torch.testing.assert_close(got, want)
