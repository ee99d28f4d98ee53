"""Output of training: a progress bar and a line per epoch in the terminal, curves and images in TensorBoard."""

import time
from pathlib import Path

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from ..run.folder import TENSORBOARD

SCALARS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "images_per_second")
SHEET = 32


class Logbook:
    """A context for the output of training; silent in all processes except the first."""

    def __init__(self, run: Path, writes: bool, epochs: int, steps_per_epoch: int, done: int = 0):
        """done: steps of earlier sessions."""
        console = rich.get_console()
        self.console = console if writes else None
        self.writer = None
        if writes:
            # Hides entries of a killed session for epochs that are repeated.
            self.writer = SummaryWriter(
                str(run / TENSORBOARD), purge_step=done // steps_per_epoch + 1 if done else None
            )
        self.epochs = epochs
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not (writes and console.is_terminal),
        )
        self.task = self.bar.add_task("", total=epochs * steps_per_epoch, completed=done, epoch=1, rate=0.0)

    def __enter__(self) -> "Logbook":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.start, self.seen = epoch, time.perf_counter(), 0

    def step(self, images: int) -> None:
        """Record a step on this many images, over all processes."""
        self.seen += images
        rate = self.seen / (time.perf_counter() - self.start)
        self.bar.update(self.task, advance=1, epoch=self.epoch, rate=rate)

    def images(self, tag: str, pixels: Tensor) -> None:
        """A sheet of images as the network sees them: uint8 (N, 3, H, W)."""
        if self.writer is not None:
            self.writer.add_image(tag, make_grid(pixels[:SHEET], nrow=8), self.epoch)

    def end_epoch(self, record: dict) -> None:
        if self.writer is not None:
            for name in SCALARS:
                self.writer.add_scalar("learning_rate" if name == "lr" else name, record[name], record["epoch"])
            self.writer.flush()
        self.print(
            f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}  lr {record['lr']:.5f}  "
            f"train {record['train_loss']:.4f} {record['train_accuracy']:7.2%}  "
            f"val {record['val_loss']:.4f} {record['val_accuracy']:7.2%}  "
            f"{record['seconds']:.1f} s  {record['images_per_second']:.0f} images/s"
        )

    def print(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)
