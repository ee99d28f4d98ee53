"""Batches of an epoch: which images, in which order, changed by which random numbers."""

import signal
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..seeds import seed_of
from .folders import Images


class Batch(NamedTuple):
    """Indices of the images, and the seed of their augmentation."""

    seed: int
    indices: list[int]


def epoch_batches(
    labels: Tensor, batch_size: int, place: tuple[int, int], rank: int = 0, world_size: int = 1, balanced: bool = False
) -> list[Batch]:
    """What one of the processes trains on in an epoch: no image twice, and as many in each process.

    Processes take turns in one order of all images; the few that do not divide evenly sit out this epoch. So does a
    last single image of a process, on which BatchNorm could not train.

    Args:
        labels: (N,), of all images.
        batch_size: of one process.
        place: (seed, epoch): the order follows from these, augmentation also from rank and step.
        balanced: draw with replacement instead, every class equally often.
    """
    n, generator = len(labels), torch.Generator().manual_seed(seed_of(*place))
    if balanced:
        order = torch.multinomial(1 / labels.bincount()[labels], n, replacement=True, generator=generator)
    else:
        order = torch.randperm(n, generator=generator)
    chunks = order[: n - n % world_size][rank::world_size].split(batch_size)
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks = chunks[:-1]
    return [Batch(seed_of(*place, rank, step), chunk.tolist()) for step, chunk in enumerate(chunks)]


def share_of(images: Images, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """The images that one of the processes validates on, in order."""
    mine = range(len(images))[rank::world_size]
    return [Batch(0, list(mine[i : i + batch_size])) for i in range(0, len(mine), batch_size)]


class Batches(Dataset):
    """For each Batch uint8 (B, 3, H, W), and int64 labels (B,)."""

    def __init__(self, images: Images, transform: Callable[[Tensor], Tensor] | None):
        self.images, self.transform = images, transform

    def __getitem__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        seed, indices = batch
        pixels = self.images.pixels(indices)
        if self.transform is not None:
            # torchvision's transforms know only the global generator. With a seed for each batch the result does
            # not depend on the process that makes it, nor on what was made before.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                pixels = [self.transform(image) for image in pixels]
        return torch.stack(pixels), self.images.labels[indices]


def make_loader(
    images: Images, batches: Sequence[Batch], workers: int, transform: Callable[[Tensor], Tensor] | None = None
) -> DataLoader:
    """The batches in order; start_epoch names others, which the same workers then make.

    Workers decode files; where a GPU would have to wait, they also augment what is in memory.
    """
    gpu = torch.cuda.is_available()
    workers = workers if images.cache is None or (gpu and transform is not None) else 0
    return DataLoader(
        Batches(images, transform),
        batch_size=None,
        sampler=list(batches),
        num_workers=workers,
        pin_memory=gpu,
        worker_init_fn=_signals_of_a_worker,
        persistent_workers=workers > 0,
    )


def start_epoch(loader: DataLoader, batches: Sequence[Batch]) -> None:
    """Have a loader of make_loader give these batches when it is next iterated over."""
    loader.sampler[:] = batches


def _signals_of_a_worker(_: int) -> None:
    """Ctrl-C goes to all processes of a terminal, and the one that trains decides what becomes of it; SIGTERM ends.

    A forked worker would otherwise have the handlers of that process, which only take note.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
