"""A minimal training with all state that a resumed run must continue; for tests, also in other processes."""

import dataclasses
from pathlib import Path

import torch

from garbage.data.folders import ImageFolder, load_folder
from garbage.settings import Settings
from garbage.train import loop

# Dropout in front of the last layer, BatchNorm, random augmentation and mixing, averaged weights, a schedule.
TINY = Settings(
    data=None,
    arch="mobilenet_v2",
    cbam="features.3",
    epochs=3,
    batch_size=8,
    image_size=32,
    train_sizes=("1:32", "3:40"),
    augment="trivial",
    erasing=0.5,
    mixup=0.2,
    cutmix=1.0,
    ema=0.5,
    lr=0.02,
    warmup_epochs=1,
    clip_grad=1.0,
    workers=1,
)


def load(folder: Path) -> ImageFolder:
    return load_folder(folder, TINY.image_size, 1)


def train(images: ImageFolder, run: Path, go_on: bool = False, report: bool = False, **changes) -> dict:
    """Train as TINY says; without a report, which takes longer than all the rest."""
    write_report = loop.write_report
    if not report:
        loop.write_report = lambda run: None
    try:
        if changes.get("epochs") == 1:
            changes = {"warmup_epochs": 0.5} | changes
        return loop.train(dataclasses.replace(TINY, **changes), images, run, go_on)
    finally:
        loop.write_report = write_report


def train_folder(folder: Path, run: Path, go_on: bool) -> None:
    """As a process of its own."""
    torch.set_num_threads(1)
    train(load(folder), run, go_on)


def same(a: object, b: object) -> bool:
    """Whether two nests of dictionaries, lists and tensors are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in ("seconds", "images_per_second"))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
