"""The garbage classifier: effects of single settings in training."""

import dataclasses
import os

import pytest
import torch
from garbage_runs import read_log
from tiny_training import load, same, train

from garbage import InputError
from garbage.data import augmentation
from garbage.settings import Settings
from garbage.train import learner, loop
from garbage.train.loss import class_weights, cross_entropy

PLAIN = {"epochs": 1, "mixup": 0.0, "cutmix": 0.0, "train_sizes": (), "lr": 0.001, "ema": 0.0}


@pytest.fixture(scope="module")
def images(drawn):
    return load(drawn)


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    """The first record and the last weights of a run with nothing special."""
    return outcome(images, tmp_path_factory.mktemp("plain") / "run")


def outcome(images, out, **changes):
    train(images, out, **PLAIN | changes)
    return read_log(out)[0], torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_computes_nearly_the_same(images, tmp_path, amp):
    # Weights that hardly change: training would make small differences large. What is left is BatchNorm over the eight
    # values of 1 x 1 maps, by which the roundings of bfloat16 change a batch's loss by 3 %, with CBAM or without.
    plain, _ = outcome(images, tmp_path / "plain", lr=1e-6)
    record, last = outcome(images, tmp_path / "run", lr=1e-6, amp=amp)
    assert record["train_loss"] == pytest.approx(plain["train_loss"], rel=0.05)
    assert record["train_loss"] != plain["train_loss"]
    assert all(v.dtype != torch.bfloat16 and v.dtype != torch.float16 for v in last["state_dict"].values())
    assert bool(last["resume"]["scaler"]) == (amp == "fp16")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_overflows_leaves_no_trace(optimizer):
    """As usual at a scale of 65536. Memory that the optimiser allocates in this step (here poisoned) must not count."""
    settings = Settings(data=None, arch="mobilenet_v2", cbam="none", amp="fp16", optimizer=optimizer, lr=0.001)
    learned = learner.make_learner(settings, ["a", "b", "c"], 10)
    before = {k: v.clone() for k, v in learned.model.named_parameters()}
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    for step, factor in enumerate((1e38, 1.0, 1.0)):
        loss = torch.nn.functional.cross_entropy(learned.model(x), labels)
        assert loss.isfinite(), f"step {step}"
        learned.optimizer.zero_grad()
        learned.scaler.scale(loss * factor).backward()
        learned.scaler.step(learned.optimizer)
        learned.scaler.update()
        learned.schedule.step()
        assert same(before, dict(learned.model.named_parameters())) == (step == 0), "only what overflows is skipped"
    assert all(p.isfinite().all() for p in learned.model.parameters()) and learned.scaler.get_scale() == 32768


@pytest.mark.parametrize("changes", [{"deterministic": True}, {"workers": 0}], ids=lambda changes: next(iter(changes)))
def test_what_changes_no_result(images, plain, tmp_path, changes):
    torch.use_deterministic_algorithms(False)
    _, last = outcome(images, tmp_path / "run", **changes)
    assert same(last["state_dict"], plain[1]["state_dict"])
    assert not torch.are_deterministic_algorithms_enabled()


class Scatter(torch.nn.Module):
    """An operation without a deterministic implementation, also on a CPU."""

    def forward(self, x):
        return x.put_(torch.tensor([0, 1]), x.flatten()[:2]) if self.training else x


def test_what_cannot_be_deterministic_is_refused_before_anything_is_written(images, tmp_path, monkeypatch):
    built = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), Scatter(), torch.nn.Flatten(), torch.nn.Linear(3, 12))
    monkeypatch.setattr(learner, "build_model", lambda *arguments: built)
    with pytest.raises(InputError, match=r"deterministic: not with this Sequential on cpu: put_ does not have"):
        train(images, tmp_path / "run", deterministic=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.cuda
@pytest.mark.parametrize("changes", [{"backend": "reference"}, {"arch": "vgg11", "cbam": "none"}])
def test_pools_that_are_not_deterministic_on_a_gpu_are_refused(changes):
    with pytest.raises(InputError, match=r"deterministic: not with .* on cuda.*: adaptive_.*_pool2d_backward_cuda"):
        learner.make_learner(Settings(data=None, deterministic=True, **changes), list("abcdefghijkl"), 3)


@pytest.mark.parametrize("channels_last", [True, False])
def test_network_and_images_have_one_layout(images, tmp_path, monkeypatch, channels_last):
    seen, to_run = [], loop.to_run

    def looked_at(model, settings):
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride()[1] == 1))
        seen.append(model.features[0][0].weight.is_contiguous(memory_format=torch.channels_last))
        return to_run(model, settings)

    monkeypatch.setattr(loop, "to_run", looked_at)
    outcome(images, tmp_path / "run", channels_last=channels_last)
    assert len(seen) > 3 and set(seen[:4]) == {channels_last}, "the weights, and three batches"


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "weight_decay": 0.05},
        {"optimizer": "sgd", "lr": 0.01},
        {"clip_grad": 1e-3},
        {"label_smoothing": 0.0},
        {"balance": "sampler"},
        {"crop_scale": 0.2},
        {"augment": "none"},
        {"augment": "rand"},
        {"augment": "auto"},
        {"erasing": 0.0},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"decay_all": False, "weight_decay": 0.5},
        {"warmup_epochs": 0.0},
        {"seed": 1},
    ],
    ids=lambda changes: "_".join(map(str, next(iter(changes.items())))),
)
def test_what_changes_the_result(images, plain, tmp_path, changes):
    record, last = outcome(images, tmp_path / "run", **changes)
    assert not same(last["state_dict"], plain[1]["state_dict"])
    assert 0 < record["train_loss"] < 4


def test_class_weights_make_rare_classes_count(two_classes, tmp_path, monkeypatch):
    images, seen = load(two_classes), []
    labels = images.train.labels
    weights = class_weights(labels, 2)
    assert labels.bincount().tolist() == [4, 8]
    assert weights.tolist() == [1.5, 0.75] and weights[labels].mean() == 1
    monkeypatch.setattr(loop, "cross_entropy", lambda *args: seen.append(args[2:]) or cross_entropy(*args))
    for balance in ("weights", "none"):
        outcome(images, tmp_path / balance, balance=balance, label_smoothing=0.2)
        smoothing, weight = seen.pop()
        assert smoothing == 0.2 and (weight is None if balance == "none" else torch.equal(weight, weights))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_weighted_and_smoothed_loss_is_lowest_at_the_smoothed_label(mixed):
    """For any class frequencies: 990 images of one class, 10 of the other."""
    labels = torch.tensor([0] * 990 + [1] * 10)
    smoothed = torch.tensor([[0.95, 0.05], [0.05, 0.95]])
    logits = smoothed.log()[labels].requires_grad_()
    targets = torch.nn.functional.one_hot(labels).float() if mixed else labels
    cross_entropy(logits, targets, 0.1, class_weights(labels, 2)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-8, rtol=0)


def test_a_weighted_batch_may_be_split():
    """Split among processes, whose gradients are averaged: one with only the rare class, and others."""
    labels, logits = torch.tensor([2, 2, 0, 0, 1, 0, 0, 1]), torch.randn(8, 3)
    weight = class_weights(labels, 3)
    parts = [cross_entropy(logits[i : i + 2], labels[i : i + 2], 0.1, weight) for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), cross_entropy(logits, labels, 0.1, weight))
    torch.testing.assert_close(
        cross_entropy(logits, labels, 0.1, torch.ones(3)), cross_entropy(logits, labels, 0.1, None)
    )


def test_mixing_gives_probabilities():
    mix = augmentation.make_mixing(Settings(data=None, mixup=0.2, cutmix=1.0), 3)
    x, targets = mix(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1]))
    assert x.shape == (4, 3, 8, 8) and targets.shape == (4, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert augmentation.make_mixing(Settings(data=None), 3) is None


def test_averaged_weights_are_evaluated_and_kept(images, tmp_path):
    _, last = outcome(images, tmp_path / "run", ema=0.5)
    raw, averaged = last["resume"]["model"], last["state_dict"]
    assert raw.keys() == averaged.keys() and not same(raw, averaged) and last["resume"]["averaged"] == 3
    _, best = outcome(images, tmp_path / "other", ema=0.5)
    assert same(best["state_dict"], averaged)


def test_training_stops_when_nothing_improves(images, tmp_path, monkeypatch):
    scores = iter([(1.0, 0.5), (0.9, 0.5), (0.95, 0.5), (1.0, 0.4), (0.1, 1.0)])
    monkeypatch.setattr(loop, "score", lambda logits, labels: next(scores))
    best = train(images, tmp_path / "run", epochs=5, patience=2)
    assert best["epoch"] == 2 and [r["epoch"] for r in read_log(tmp_path / "run")] == [1, 2, 3, 4]
    assert train(images, tmp_path / "run", go_on=True, epochs=5, patience=2) == best


def test_compile_wraps_the_network_that_learns(images, plain, tmp_path, monkeypatch):
    """With the compiler itself only if CBAM_FUSED_SLOW is set, since it takes minutes."""
    compiled, compile_ = [], torch.compile

    def note(network):
        compiled.append(network)
        return compile_(network, backend="inductor" if "CBAM_FUSED_SLOW" in os.environ else "eager")

    monkeypatch.setattr(torch, "compile", note)
    record, last = outcome(images, tmp_path / "run", compile=True)
    assert len(compiled) == 1 and record["train_loss"] == pytest.approx(plain[0]["train_loss"], rel=1e-3)
    assert last["state_dict"].keys() == plain[1]["state_dict"].keys(), "names as without the compiler"


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(data=None).epochs = 3
