"""A training step on a GPU never blocks the host, and the workers of an epoch are reused in the next."""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from fake_gpu import FakeGpu
from tiny_training import load, same, train
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from garbage.data import folders, loading
from garbage.train import loop
from garbage.train.learner import update_average
from garbage.train.logbook import Logbook


@pytest.fixture(scope="module")
def images(drawn):
    return load(drawn)


@contextmanager
def stand_in() -> Iterator[Callable[[], list[str]]]:
    with FakeGpu() as gpu:
        yield lambda: list(gpu.waits)
    folders.statistics.cache_clear()


@contextmanager
def real() -> Iterator[Callable[[], list[str]]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: [str(w.message) for w in caught if "synchronizing" in str(w.message)]
        finally:
            torch.cuda.set_sync_debug_mode("default")


gpus = pytest.mark.parametrize("gpu", [stand_in, pytest.param(real, marks=pytest.mark.cuda)])


@gpus
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.0, "mixup": 0.0, "cutmix": 0.0, "clip_grad": None, "balance": "weights", "amp": "fp16"},
        {"amp": "bf16", "freeze": "backbone", "optimizer": "adamw"},
    ],
    ids=["everything", "fp16, weights of the classes", "bf16, frozen, adamw"],
)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_a_step_waits_for_nothing(images, tmp_path, monkeypatch, gpu, changes):
    seen, step = [], Logbook.step

    def noted(self, count):
        step(self, count)
        seen.append(waits())

    monkeypatch.setattr(Logbook, "step", noted)
    with gpu() as waits:
        train(images, tmp_path / "run", epochs=1, workers=0, train_sizes=(), **changes)
    assert len(seen) == 3 and seen[0], "the network was brought to the GPU"
    for before, after in itertools.pairwise(seen):
        assert after[len(before) :] == [], "a step waited"


def test_the_stand_in_counts_what_the_trainer_did(images):
    """Labels copied to a GPU by a blocking copy, and mean and deviation created there in each step."""
    with stand_in() as waits:
        pixels = torch.stack(images.val.pixels([0, 1])).to("cuda", non_blocking=True)
        assert waits() == []
        folders.normalise(pixels)
        first = waits()
        folders.normalise(pixels)
        assert len(first) == 2 and waits() == first
        images.val.labels.to(torch.device("cuda"))
        torch.as_tensor([0.5], device=pixels.device)
        assert waits() == [*first, "to cuda", "as_tensor of data on the host"]


def test_normalise_gives_torchvisions_bits(images):
    pixels = torch.stack(images.val.pixels([0, 1, 2]))
    expected = folders.v2.Compose(
        [folders.v2.ToDtype(torch.float32, scale=True), folders.v2.Normalize(folders.MEAN, folders.STD)]
    )(pixels)
    with torch.inference_mode():
        assert torch.equal(folders.normalise(pixels), expected)
    got = folders.normalise(pixels)
    assert torch.equal(got, expected) and not got.is_inference()


def test_the_average_has_the_bits_of_torchs():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(torch.bfloat16)
    mine, theirs = (AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True) for _ in "ab")
    for _ in range(3):
        network(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)).sum().backward()
        with torch.no_grad():
            network[0].weight += network[0].weight.grad
        update_average(mine, network)
        theirs.update_parameters(network)
        assert same(mine.state_dict(), theirs.state_dict())
    assert mine.n_averaged == 3 and mine.module[1].num_batches_tracked == 2


class WhichProcess(loading.Batches):
    def __getitem__(self, batch):
        return torch.tensor([os.getpid()]), super().__getitem__(batch)[1]


def test_workers_stay_from_one_epoch_to_the_next(images, monkeypatch):
    monkeypatch.setattr(images.train, "cache", None)
    monkeypatch.setattr(loading, "Batches", WhichProcess)
    epochs = [loading.epoch_batches(images.train.labels, 8, (0, epoch)) for epoch in (1, 2)]
    loader = loading.make_loader(images.train, epochs[0], 2)
    processes, labels = [], []
    for batches in epochs:
        loading.start_epoch(loader, batches)
        made = list(loader)
        processes.append({pid.item() for pid, _ in made})
        labels.append([y for _, y in made])
    assert len(processes[0]) == 2 and processes[0] == processes[1] and os.getpid() not in processes[0]
    for batches, got in zip(epochs, labels, strict=True):
        assert same(got, [images.train.labels[batch.indices] for batch in batches])


def test_a_run_makes_its_loaders_once(images, tmp_path, monkeypatch):
    made, make = [], loop.make_loader
    monkeypatch.setattr(loop, "make_loader", lambda *given, **named: made.append(given[0]) or make(*given, **named))
    train(images, tmp_path / "run", epochs=3, workers=0)  # with other sizes from the third epoch on
    assert [part is images.train for part in made] == [False, True, True]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_validation_of_images_in_memory_needs_no_workers(images, monkeypatch):
    """They are only batched; training also augments them in workers, so that a GPU does not wait."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    batches = loading.share_of(images.val, 8)
    assert loading.make_loader(images.val, batches, 4).num_workers == 0
    assert loading.make_loader(images.train, batches, 4, transform=lambda image: image).num_workers == 4
    monkeypatch.setattr(images.val, "cache", None)
    assert loading.make_loader(images.val, batches, 4).num_workers == 4
