"""The garbage classifier: training in several processes."""

import copy
import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from garbage_runs import REPO, read_log
from tiny_training import TINY

from garbage import InputError, distributed
from garbage.data import folders
from garbage.data.augmentation import make_mixing, train_transform
from garbage.data.loading import epoch_batches, make_loader, share_of
from garbage.seeds import seed_all
from garbage.settings import Settings
from garbage.train import loop, validation
from garbage.train.learner import make_learner
from train_example import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("n", "processes", "batch_size"), [(24, 2, 4), (23, 2, 4), (29, 3, 3), (9, 4, 2)])
def test_processes_share_the_images_of_an_epoch(n, processes, batch_size):
    labels = torch.arange(n) % 3
    epochs = [[epoch_batches(labels, batch_size, (7, e), r, processes) for r in range(processes)] for e in (1, 2)]
    for shares in epochs:
        seen = [i for share in shares for batch in share for i in batch.indices]
        assert len(seen) == len(set(seen)), "an image in two processes"
        assert len(seen) > n - processes * 2
        assert len({tuple(len(batch.indices) for batch in share) for share in shares}) == 1, "other steps, other sizes"
        seeds = [batch.seed for share in shares for batch in share]
        assert len(seeds) == len(set(seeds))
    assert epochs[0] != epochs[1]
    assert epochs[0][0] == epoch_batches(labels, batch_size, (7, 1), 0, processes)


def test_a_balanced_epoch_has_every_class_as_often():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    batches = epoch_batches(labels, 50, (0, 1), balanced=True)
    drawn = labels[[i for batch in batches for i in batch.indices]].bincount()
    assert len(batches) == 20 and (drawn - 1000 / 3).abs().max() < 60  # four standard deviations of a third of 1000


def test_validation_counts_every_image_once(two_classes, monkeypatch):
    images = folders.load_folder(two_classes, 32, 1).val
    shares = [share_of(images, 2, rank, 2) for rank in (0, 1)]
    assert [[batch.indices for batch in share] for share in shares] == [[[0, 2]], [[1]]]
    rows = torch.arange(3.0).reshape(3, 1)
    parts = [torch.cat([rows[batch.indices] for batch in share]) for share in shares]
    monkeypatch.setattr(distributed, "gathered", lambda share: parts)
    assert torch.equal(validation.whole(parts[0]), rows)
    parts[1], rows = torch.empty(0), rows[:1]  # more processes than images
    parts[0] = rows
    assert torch.equal(validation.whole(parts[0]), rows)


def averaged_by_one_process(settings: Settings, images: folders.ImageFolder) -> torch.nn.Module:
    """The network after training on both processes' batches in turn, with averaged gradients and separate BatchNorm."""
    per_process = settings.batch_size // 2
    batches = {
        (epoch, rank): epoch_batches(images.train.labels, per_process, (settings.seed, epoch), rank, 2)
        for epoch in range(1, settings.epochs + 1)
        for rank in (0, 1)
    }
    learner = make_learner(settings, images.classes, len(batches[1, 0]))
    mixing = make_mixing(settings, len(images.classes))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    for epoch in range(1, settings.epochs + 1):
        transform = train_transform(settings, settings.train_size(epoch))
        loaders = [make_loader(images.train, batches[epoch, rank], 0, transform) for rank in (0, 1)]
        for step, halves in enumerate(zip(*loaders, strict=True)):
            networks = [learner.model, copy.deepcopy(learner.model)]
            for rank, (network, (pixels, labels)) in enumerate(zip(networks, halves, strict=True)):
                network.train().zero_grad()
                seed_all(settings.seed, epoch, rank, step, 1)
                x, targets = mixing(folders.normalise(pixels), labels)
                criterion(network(x.contiguous(memory_format=torch.channels_last)), targets).backward()
            for mine, other in zip(*(network.parameters() for network in networks), strict=True):
                mine.grad = (mine.grad + other.grad) / 2
            torch.nn.utils.clip_grad_norm_(learner.model.parameters(), settings.clip_grad)
            learner.optimizer.step()
            learner.schedule.step()
            learner.ema.update_parameters(learner.model)
    return learner.ema.module


def test_torchrun_gives_the_weights_of_averaged_half_batches(two_classes, tmp_path):
    settings = TINY.__class__(**asdict(TINY) | {"data": str(two_classes), "epochs": 2, "train_sizes": ("2:40",)})
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(settings)))
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["train_example.py", "train", "--config", str(tmp_path / "tiny.json"), "--out", str(out)]
    result = subprocess.run([*torchrun, *command], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best epoch") == 1, "one process writes"
    assert (out / "report.html").exists()
    images = folders.load_folder(two_classes, 32, 1)
    expected = averaged_by_one_process(settings, images)
    last = torch.load(out / "last.pt", weights_only=True)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=1e-5, atol=1e-7, msg=name)
    log = read_log(out)
    assert [record["epoch"] for record in log] == [1, 2]
    logits = validation.predict_batches(expected, make_loader(images.val, share_of(images.val, 8), 0))
    assert (log[-1]["val_loss"], log[-1]["val_accuracy"]) == pytest.approx(validation.score(logits, images.val.labels))
    assert round(log[-1]["train_accuracy"] * 12, 6).is_integer(), "all 12 images, each once"


@pytest.mark.parametrize(
    ("batch_size", "processes", "message"),
    [
        (31, 2, "must be a multiple of 2"),
        (2, 2, "at least 4"),
        (16, 8, "15 images for training are too few for 8 processes"),
    ],
)
def test_a_batch_that_processes_cannot_share_is_refused(batch_size, processes, message):
    with pytest.raises(InputError, match=message):
        loop._check_batches(Settings(data=None, batch_size=batch_size), 15, processes)


def test_an_environment_that_is_not_that_of_torchrun_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert main(["train"]) == 2
    assert "WORLD_SIZE is set as by torchrun, but not RANK, LOCAL_RANK, " in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(monkeypatch, capsys):
    for name in distributed.TORCHRUN:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["train"]) == 2
    assert "each process needs a GPU: --nproc-per-node is 2, this machine has 1" in capsys.readouterr().err


def test_synchronised_batchnorm_needs_gpus():
    with pytest.raises(InputError, match="sync_bn needs GPUs"):
        make_learner(Settings(data=None, sync_bn=True), ["a", "b"], 1)
