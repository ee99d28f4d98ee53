"""Batches of an epoch: images, order, and random numbers of the augmentation."""

import signal
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..seeds import seed_of
from .folders import Images


class Batch(NamedTuple):
    """Indices of images, and the seed of their augmentation."""

    seed: int
    indices: list[int]


def epoch_batches(
    labels: Tensor, batch_size: int, place: tuple[int, int], rank: int = 0, world_size: int = 1, balanced: bool = False
) -> list[Batch]:
    """The training batches of one process in an epoch: no image twice, and the same number in each process.

    The processes take turns in one order of all images. The remainder that does not divide evenly is skipped in this
    epoch, and so is a last single image of a process, on which BatchNorm cannot train.

    Args:
        labels: (N,), of all images.
        batch_size: per process.
        place: (seed, epoch), which determine the order; rank and step also determine the augmentation.
        balanced: draw with replacement, every class equally often.
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
    """The validation batches of one process, in order."""
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
            # torchvision's transforms use the global generator. With a seed per batch the result depends neither on
            # the process nor on earlier batches.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                pixels = [self.transform(image) for image in pixels]
        return torch.stack(pixels), self.images.labels[indices]


def make_loader(
    images: Images, batches: Sequence[Batch], workers: int, transform: Callable[[Tensor], Tensor] | None = None
) -> DataLoader:
    """The batches in order; start_epoch sets other batches for the same workers.

    Workers decode files; for a GPU they also augment images in memory, so that the GPU does not wait.
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
    """Set the batches of a loader of make_loader for its next iteration."""
    loader.sampler[:] = batches


def _signals_of_a_worker(_: int) -> None:
    """Ignore Ctrl-C, which goes to all processes of a terminal and which the training process handles; SIGTERM ends.

    A forked worker would otherwise inherit the handlers of the training process, which only set a flag.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
