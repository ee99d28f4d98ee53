"""The training loop: one run, from a seed to its folder."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import rich
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import InputError, Interrupted, distributed
from ..data.augmentation import make_mixing, train_transform
from ..data.folders import ImageFolder, normalise
from ..data.loading import Batch, epoch_batches, make_loader, share_of, start_epoch
from ..report.write import write_report
from ..run.environment import start_run
from ..run.folder import LAST, check_space, check_writable, locked, read_config, write_config
from ..seeds import seed_all
from ..settings import Settings
from .freezing import Freezing
from .interruption import interruptible
from .learner import bytes_to_write, make_learner, to_run, update_average
from .logbook import Logbook
from .loss import class_weights, cross_entropy
from .state import Progress, resume, save
from .validation import predict_batches, score, whole

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(settings: Settings, images: ImageFolder, run: Path, go_on: bool = False) -> dict:
    """Train one network, fill the run folder, and write its report.

    The best epoch has the highest validation accuracy, and among equals the lowest loss.

    Args:
        run: the folder; files of an earlier run are removed first, unless go_on.
        go_on: resume the run from its last.pt, with the result of an uninterrupted run. A run without last.pt was
            stopped in its first epoch and restarts.

    Returns:
        The log record of the best epoch.

    Raises:
        InputError: settings that do not fit the network, the images or the machine; nothing was written.
        FloatingPointError: the training loss became infinite or NaN.
        Interrupted: by Ctrl-C or SIGTERM; the state is saved, also within an epoch.
        OSError: the disk is full; the run can resume from its last state.
    """
    with _deterministic(settings.deterministic):
        training = _Training(settings, images, run, go_on and (run / LAST).exists())
        with locked(run) if distributed.rank() == 0 else nullcontext():
            return training.run_epochs()


class _Training:
    """A call of train."""

    def __init__(self, settings: Settings, images: ImageFolder, run: Path, resumed: bool):
        self.settings, self.images, self.run, self.resumed = settings, images, run, resumed
        self.rank, self.processes = distributed.rank(), distributed.world_size()
        self.device, self.amp = distributed.device(), AMP[settings.amp]
        _check_batches(settings, len(images.train), self.processes)
        self.steps = len(self._batches(1))
        self.learner = make_learner(settings, images.classes, self.steps, resumed)
        self.freezing = Freezing(self.learner.model, settings)
        check_writable(run)
        check_space(run, bytes_to_write(self.learner, settings))
        self.mixing = make_mixing(settings, len(images.classes))
        self.loaders: dict[int, DataLoader] = {}  # by image size; one, except in the epoch of a change
        val = share_of(images.val, settings.batch_size, self.rank, self.processes)
        self.val_loader = make_loader(images.val, val, settings.workers)
        self.weight = None
        if settings.balance == "weights":
            self.weight = class_weights(images.train.labels, len(images.classes)).to(self.device)

    def run_epochs(self) -> dict:
        if self.resumed:
            self.progress = resume(self.run, self.settings, self.images, self.learner)
            if self.rank == 0:
                write_config(self.run, read_config(self.run) | asdict(self.settings))  # the images may have moved
        else:
            self.progress = Progress()
            if self.rank == 0:
                start_run(self.run, self.settings, self.images)
        progress, done = self.progress, self.progress.epoch * self.steps + self.progress.step
        if progress.epoch >= self.settings.epochs or self._out_of_patience():
            why = f"nothing new for {self.settings.patience} epochs" if progress.epoch < self.settings.epochs else "all"
            rich.get_console().print(
                f"{self.run} is finished after {progress.epoch} of {self.settings.epochs} epochs ({why}): nothing is "
                f"trained. {how_to_train_on(self.run)}",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
        book = Logbook(self.run, self.rank == 0, self.settings.epochs, self.steps, done)
        network = None
        with book, interruptible() as interrupted:
            while progress.epoch < self.settings.epochs and not self._out_of_patience():
                if self.freezing.start(progress.epoch + 1) or network is None:
                    network = to_run(self.learner.model, self.settings)
                self._epoch(network, book, interrupted)
                if distributed.any_process(interrupted()):
                    raise self._interrupted()
        if self.rank == 0:
            write_report(self.run)
        return distributed.from_first(progress.best)

    def _epoch(self, network: nn.Module, book: Logbook, interrupted: Callable[[], bool]) -> None:
        progress, epoch, start = self.progress, self.progress.epoch + 1, time.perf_counter()
        if progress.step == 0:
            progress.lr = max(self.learner.schedule.get_last_lr())
        book.start_epoch(epoch)
        self._steps(network, epoch, book, interrupted)
        train_seconds = time.perf_counter() - start
        loss, right, seen = distributed.total(torch.tensor(progress.sums, dtype=torch.float64)).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} in epoch {epoch}; try a lower --lr")
        distributed.share_buffers(self.learner.for_use)
        logits = whole(predict_batches(self.learner.for_use, self.val_loader, self.amp))
        progress.epoch, progress.step, progress.sums = epoch, 0, [0.0, 0.0, 0.0]
        record = None
        if logits is not None:
            val_loss, val_accuracy = score(logits, self.images.val.labels)
            record = {
                "epoch": epoch,
                "lr": progress.lr,
                "train_loss": loss / seen,
                "train_accuracy": right / seen,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": round(time.perf_counter() - start, 2),
                "images_per_second": round(book.seen / train_seconds, 1),
            }
        record = distributed.from_first(record)
        progress.records.append(record)
        improved = progress.best is None or _quality(record) > _quality(progress.best)
        progress.best = record if improved else progress.best
        progress.best_probabilities = logits.softmax(1) if improved and logits is not None else None
        if self.rank == 0:
            save(self.run, self.settings, self.images, self.learner, progress)
        book.end_epoch(record)

    def _steps(self, network: nn.Module, epoch: int, book: Logbook, interrupted: Callable[[], bool]) -> None:
        """The remaining steps of an epoch; updates progress.sums and progress.step."""
        settings, learner, progress = self.settings, self.learner, self.progress
        sums = torch.tensor(progress.sums, dtype=torch.float64, device=self.device)
        loader = self._loader(settings.train_size(epoch))
        start_epoch(loader, self._batches(epoch)[progress.step :])
        network.train()
        for step, (pixels, labels) in enumerate(loader, progress.step):
            if epoch == 1 and step == 0:
                book.images("training", pixels)
            seed_all(settings.seed, epoch, self.rank, step, 1)  # for mixing and dropout
            x = normalise(pixels.to(self.device, non_blocking=True))
            labels = labels.to(self.device, non_blocking=True)
            targets = labels
            if self.mixing is not None:
                x, targets = self.mixing(x, labels)
                labels = targets.argmax(1)
            loss, logits = self._step(network, x, targets)
            # Summed on the device: reading a value synchronises a GPU (with several GPUs, any_process below does).
            sums += torch.stack(
                [loss.double() * len(x), (logits.argmax(1) == labels).sum().double(), torch.full_like(sums[0], len(x))]
            )
            book.step(len(x) * self.processes)
            progress.step = step + 1
            if distributed.any_process(interrupted()):
                progress.sums, progress.best_probabilities = distributed.total(sums).tolist(), None
                if self.rank == 0:
                    save(self.run, settings, self.images, learner, progress)
                raise self._interrupted()
        progress.sums = sums.tolist()

    def _step(self, network: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        learner, settings = self.learner, self.settings
        x = x.contiguous(memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logits = network(x)
        loss = cross_entropy(logits.float(), targets, settings.label_smoothing, self.weight)
        learner.optimizer.zero_grad()
        learner.scaler.scale(loss).backward()
        if settings.clip_grad is not None:
            learner.scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(learner.model.parameters(), settings.clip_grad)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        learner.schedule.step()
        if learner.ema is not None:
            update_average(learner.ema, learner.model)
        return loss.detach(), logits.detach()

    def _loader(self, side: int) -> DataLoader:
        """A loader of training images of this size; its workers stay until the size changes."""
        if side not in self.loaders:
            transform = train_transform(self.settings, side)
            self.loaders = {side: make_loader(self.images.train, [], self.settings.workers, transform)}
        return self.loaders[side]

    def _batches(self, epoch: int) -> list[Batch]:
        settings = self.settings
        return epoch_batches(
            self.images.train.labels,
            settings.batch_size // self.processes,
            (settings.seed, epoch),
            self.rank,
            self.processes,
            balanced=settings.balance == "sampler",
        )

    def _out_of_patience(self) -> bool:
        progress, patience = self.progress, self.settings.patience
        return patience is not None and bool(progress.best) and progress.epoch - progress.best["epoch"] >= patience

    def _interrupted(self) -> Interrupted:
        place = f"after epoch {self.progress.epoch}"
        if self.progress.step:
            place += f" and {self.progress.step} of {self.steps} steps"
        return Interrupted(f"stopped and saved {place}; resume with: python train_example.py train --resume {self.run}")


def how_to_train_on(run: Path) -> str:
    """A message on how to train the network of a run further, or with other settings."""
    return (
        "To train its network further, or with other settings, start a new run from its weights: "
        f"python train_example.py train --weights {run / LAST} --data DIR --out NEW"
    )


def _quality(record: dict) -> tuple[float, float]:
    return record["val_accuracy"], -record["val_loss"]


def _check_batches(settings: Settings, train_images: int, processes: int) -> None:
    if settings.batch_size % processes or settings.batch_size < 2 * processes:
        raise InputError(
            f"batch_size is for all {processes} processes together: it must be a multiple of {processes}, "
            f"at least {2 * processes}, got {settings.batch_size}"
        )
    if train_images < 2 * processes:
        raise InputError(f"{train_images} images for training are too few for {processes} processes: each needs two")


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms only, if wanted; else the caller's setting."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS raises without it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
