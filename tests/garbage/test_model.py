"""The garbage classifier's network: architectures, places of CBAM, initial weights, frozen parts."""

import functools

import pytest
import torch
import torchvision
from tiny_training import TINY, load, train

from cbam_fused import CBAM
from garbage import InputError
from garbage.model import classifier, weights
from garbage.run.folder import load_run
from garbage.settings import Settings
from garbage.train import learner
from garbage.train.freezing import Freezing
from garbage.train.optimisation import make_optimizer, make_schedule

pytestmark = pytest.mark.usefixtures("undrawn")

KEYS = ("ca.fc1.weight", "ca.fc2.weight", "sa.conv1.weight")
RESNET18 = functools.partial(classifier.build_model, "resnet18", 12)
RESNET18_OF_3 = functools.partial(classifier.build_model, "resnet18", 3)


# Of each kind of block one; torchvision builds the others with the same class of network.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet101", "resnet152")]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", *SLOW])
def test_cbam_comes_after_each_layer_or_nowhere(arch):
    plain, attentive = (set(classifier.build_model(arch, 3, cbam).state_dict()) for cbam in ("none", "each_layer"))
    assert attentive - plain == {f"layer{i}.cbam.{key}" for i in (1, 2, 3, 4) for key in KEYS} and plain < attentive


@pytest.mark.parametrize(
    ("placement", "count"),
    [("each_layer", 4), ("in_block", 8), ("stem_last", 2), ("last", 1), ("none", 0), ("layer1, layer2.0.conv1", 2)],
)
@pytest.mark.parametrize("backend", classifier.BACKENDS)
def test_each_placement_learns(placement, count, backend):
    network = RESNET18(placement, backend)
    assert sum(isinstance(m, classifier.BACKENDS[backend]) for m in network.modules()) == count
    torch.nn.functional.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([1, 7])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("arch", "head", "side"),
    [
        ("squeezenet1_1", "classifier.1", 32),
        ("mobilenet_v3_small", "classifier.3", 32),
        ("shufflenet_v2_x0_5", "fc", 32),
        ("densenet121", "classifier", 32),
        ("googlenet", "fc", 32),
        ("convnext_tiny", "classifier.2", 32),
    ],
)
def test_the_head_of_any_network_has_the_classes(arch, head, side):
    network = classifier.build_model(arch, 5, "none").train()
    assert classifier.head_name(network) == head
    assert network(torch.randn(2, 3, side, side)).shape == (2, 5)
    classifier.check_size(network, side)
    assert network.training


def test_names_of_layers_and_their_checkpoint(drawn, tmp_path):
    images = load(drawn)
    train(images, tmp_path / "run", epochs=1, cbam="features.3,features.18", cbam_init="identity")
    network, checkpoint = load_run(tmp_path / "run")
    assert checkpoint["cbam"] == "features.3,features.18" and checkpoint["epoch"] == 1
    assert sum(isinstance(m, CBAM) for m in network.modules()) == 2
    assert network.features[3].cbam.ca.fc2.bias is not None


def test_weights_are_loaded_before_the_insertion_and_identity_keeps_what_they_compute():
    state = torchvision.models.resnet18(num_classes=12).state_dict()
    plain, gentle, usual = (
        RESNET18(cbam, cbam_init=init, weights=weights.Weights(state)).eval()
        for cbam, init in (("none", "default"), ("each_layer", "identity"), ("each_layer", "default"))
    )
    assert all(torch.equal(gentle.state_dict()[k], v) for k, v in state.items())
    x = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        expected, near, far = (network(x) for network in (plain, gentle, usual))
    error = (near - expected).norm() / expected.norm()
    assert error < 0.3 < (far - expected).norm() / expected.norm()


def test_weights_for_other_classes_leave_the_last_layer_new(monkeypatch):
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(learner, "pretrained_weights", lambda arch: weights.Weights(state))
    network = learner.make_learner(Settings(data=None, pretrained=True), list("abcde"), 1).model
    got = network.state_dict()
    assert all(torch.equal(got[k], v) for k, v in state.items() if not k.startswith("fc."))
    assert got["fc.weight"].shape == (5, 512) and "layer4.cbam.ca.fc1.weight" in got


def test_weights_of_a_file(tmp_path):
    trained = RESNET18("each_layer").state_dict()
    checkpoint = {"arch": "resnet18", "state_dict": trained}
    torch.save(checkpoint, tmp_path / "run.pt")
    torch.save({f"module.{k}": v for k, v in trained.items() if "cbam" not in k}, tmp_path / "parallel.pth")
    for name, same in (("run.pt", set(trained)), ("parallel.pth", {k for k in trained if "cbam" not in k})):
        got = RESNET18("each_layer", weights=weights.weights_in(tmp_path / name, "resnet18")).state_dict()
        assert {k for k in trained if torch.equal(got[k], trained[k])} >= same


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights of a network of the classes c, a and b, and the settings of a training that begins with them."""
    path = tmp_path_factory.mktemp("trained") / "run.pt"
    state = RESNET18_OF_3("each_layer").state_dict()
    torch.save({"arch": "resnet18", "classes": list("cab"), "state_dict": state}, path)
    return state, Settings(data=None, weights=str(path))


@pytest.mark.parametrize("classes", [list("abc"), list("abcd"), list("ab"), list("dca"), ["x", "y", "z"]])
def test_rows_of_the_last_layer_go_by_the_names_of_classes(trained, capsys, classes):
    """Rows of the same number of other classes must not be copied in order."""
    trained, settings = trained
    start = learner.make_learner(settings, ["x", *"yzuvw"][: len(classes)], 1).model.fc
    capsys.readouterr()
    got = learner.make_learner(settings, classes, 1).model.fc
    output = capsys.readouterr().out
    new = [name for name in classes if name not in "cab"]
    for row, name in enumerate(classes):
        weight, bias = (
            (start.weight[row], start.bias[row])
            if name in new
            else (trained["fc.weight"]["cab".index(name)], trained["fc.bias"]["cab".index(name)])
        )
        assert torch.equal(got.weight[row], weight) and torch.equal(got.bias[row], bias), name
    assert (f"last layer: new are {', '.join(new)}" if new else "the weights know all classes") in output


def test_rows_of_an_unnamed_last_layer_are_said_to_go_by_their_order(tmp_path, capsys):
    torch.save(RESNET18_OF_3("each_layer").state_dict(), tmp_path / "state.pt")
    learner.make_learner(Settings(data=None, weights=str(tmp_path / "state.pt")), list("abc"), 1)
    assert "the weights name no classes: a last layer of as many rows is taken row by row" in capsys.readouterr().out


def test_a_last_layer_of_squeezenet_goes_by_names(tmp_path):
    network = functools.partial(classifier.build_model, "squeezenet1_1", cbam="none")
    trained = network(num_classes=2).state_dict()
    found = weights.Weights(trained, ["b", "a"])
    got = network(num_classes=3, weights=found, classes=["a", "n", "b"]).state_dict()
    assert torch.equal(got["classifier.1.weight"][[2, 0]], trained["classifier.1.weight"])


def test_names_that_do_not_fit_the_last_layer_are_refused(tmp_path):
    state = RESNET18_OF_3("each_layer").state_dict()
    with pytest.raises(InputError, match=r"the weights name 2 classes, but fc.* has 3 rows"):
        RESNET18_OF_3("each_layer", weights=weights.Weights(state, ["a", "b"]), classes=list("abc"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
        lambda state: {f"model.{k}": v for k, v in state.items()},
        lambda state: {k.replace("cbam.", "cbam._orig_mod."): v for k, v in state.items()},
        lambda state: {k.replace("layer2.", "layer2._checkpoint_wrapped_module."): v for k, v in state.items()},
        lambda state: {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.tensor(3)},
    ],
)
def test_names_of_wrappers_are_taken_off(tmp_path, wrap):
    trained = RESNET18("each_layer").state_dict()
    torch.save(wrap(trained), tmp_path / "weights.pt")
    got = RESNET18("each_layer", weights=weights.weights_in(tmp_path / "weights.pt", "resnet18")).state_dict()
    assert all(torch.equal(got[k], v) for k, v in trained.items())


def test_weights_with_and_without_the_name_of_a_wrapper_are_refused(tmp_path):
    trained = RESNET18("each_layer").state_dict()
    torch.save(trained | {f"_orig_mod.{k}": v + 1 for k, v in trained.items()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="holds some weights twice"):
        weights.weights_in(tmp_path / "weights.pt", "resnet18")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arch": "resnet50", "state_dict": {}}, "holds weights of resnet50, not of resnet18"),
        ({"epoch": 3}, "holds no state_dict"),
        (torch.zeros(3), "holds no state_dict"),
        (
            torchvision.models.squeezenet1_1().state_dict(),
            r"missing: bn1.bias.* and \d+ more; not in the network: class",
        ),
        (torchvision.models.resnet34().state_dict(), "not in the network: layer1.2.bn1.bias"),
        (RESNET18("last").state_dict(), "missing: layer1.cbam.ca.fc1.weight"),
        (
            torchvision.models.resnet18().state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)},
            "this ResNet: of another shape: conv1.weight$",
        ),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=message):
        RESNET18("each_layer", weights=weights.weights_in(tmp_path / "weights.pt", "resnet18"))


def test_frozen_parts_thaw_in_stages():
    settings = Settings(data=None, freeze="backbone", unfreeze=("3:layer4, layer3", "5:all"), epochs=6)
    network = RESNET18("each_layer")
    freezing = Freezing(network, settings)

    def learning():
        return {n.split(".cbam")[-1].split(".")[0] or "cbam" for n, p in network.named_parameters() if p.requires_grad}

    assert [freezing.start(e) for e in (1, 2)] == [True, False]
    network.train()
    assert learning() == {"cbam", "fc"} and not network.layer4[0].bn1.training
    assert [freezing.start(e) for e in (3, 4)] == [True, False]
    network.train()
    assert learning() == {"cbam", "fc", "layer3", "layer4"}
    assert network.layer4[0].bn1.training and not network.bn1.training
    assert freezing.start(5)
    network.train()
    assert all(p.requires_grad for p in network.parameters()) and network.bn1.training
    with pytest.raises(InputError, match="the model has no sub-module 'layer5'"):
        Freezing(RESNET18("last"), Settings(data=None, freeze="backbone", unfreeze=("2:layer5",)))


def test_a_frozen_backbone_keeps_its_values_until_it_thaws(drawn, tmp_path):
    images = load(drawn)
    changes = {"freeze": "backbone", "unfreeze": ("2:features.18", "3:all"), "ema": 0.0, "train_sizes": ()}
    states = []
    for epochs in (1, 2, 3):
        train(images, tmp_path / str(epochs), epochs=epochs, schedule="step", **changes)
        states.append(torch.load(tmp_path / str(epochs) / "last.pt", weights_only=True)["state_dict"])
    start = learner.make_learner(TINY, images.classes, 3).model.state_dict()

    def changed(state):
        return {k for k in start if not torch.equal(start[k], state[k])}

    first, second, third = map(changed, states)
    assert first == {k for k in start if ".cbam." in k or k.startswith("classifier")}
    assert second == first | {k for k in start if k.startswith("features.18.")}
    assert third == set(start)


def test_optimiser_groups_have_their_rates_and_decays():
    settings = Settings(data=None, lr=0.1, backbone_lr=0.1, weight_decay=1e-3, decay_all=False)
    network = RESNET18("each_layer")
    optimizer = make_optimizer(network, settings)
    schedule = make_schedule(optimizer, settings, 10)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == len(list(network.parameters()))
    assert sorted(schedule.base_lrs) == pytest.approx([0.01, 0.01, 0.1, 0.1])
    for name, rate, decay in (
        ("layer1.cbam.ca.fc1.weight", 0.1, 1e-3),
        ("fc.bias", 0.1, 0.0),
        ("conv1.weight", 0.01, 1e-3),
        ("bn1.weight", 0.01, 0.0),
    ):
        group = of[id(network.get_parameter(name))]
        assert (group["initial_lr"], group["weight_decay"]) == (pytest.approx(rate), decay), name


def test_cbam_has_a_rate_of_its_own():
    network = RESNET18("each_layer")
    optimizer = make_optimizer(network, Settings(data=None, lr=0.1, backbone_lr=0.5, cbam_lr=0.1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for name, rate in (("layer1.cbam.ca.fc1.weight", 0.01), ("fc.weight", 0.1), ("layer1.0.conv1.weight", 0.05)):
        assert rates[id(network.get_parameter(name))] == pytest.approx(rate), name
    assert len(make_optimizer(network, Settings(data=None)).param_groups) == 2  # as in the last.pt of older runs


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 20: 0.5, 30: 0.0}),
        ({"min_lr": 0.1}, {9: 1.0, 10: 1.0, 20: 0.55, 30: 0.1}),
        ({"schedule": "step", "step_epochs": 1, "step_factor": 0.5}, {4: 0.5, 19: 1.0, 20: 0.5, 29: 0.5, 30: 0.25}),
        ({"warmup_epochs": 0.0}, {0: 1.0, 15: 0.5}),
        ({"epochs": 1, "warmup_epochs": None}, {0: 0.2, 4: 1.0, 5: 1.0, 10: 0.0}),  # half of all at most
        ({"epochs": 1, "warmup_epochs": 0.5}, {0: 0.2, 4: 1.0, 5: 1.0, 10: 0.0}),
    ],
)
def test_schedules(changes, expected):
    """Ten steps an epoch, three epochs, one of warm-up, unless changed."""
    settings = Settings(data=None, **{"epochs": 3, "lr": 1.0, "warmup_epochs": 1.0} | changes)
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = make_schedule(torch.optim.SGD([parameter], lr=1.0), settings, 10)
    rates = []
    for _ in range(31):
        rates += schedule.get_last_lr()
        schedule.optimizer.step()
        schedule.step()
    assert {step: rates[step] for step in expected} == pytest.approx(expected, abs=1e-9)
