"""The training loop: one run, from a seed to its folder."""

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import rich
import torch
import torchvision
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from cbam_fused import functional

from .checkpoint import BEST, CLASSES, CONFIG, CONFUSION, CURVES, LAST, LOG, RUN_FILES, replacing
from .data import ImageFolder, make_loader, normalise
from .model import build_model
from .report import draw_confusion_matrix, draw_curves


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run. data is None for the built-in sample set; lr is the peak of the schedule."""

    data: str | None
    arch: str
    cbam: str
    backend: str
    pretrained: bool
    epochs: int
    batch_size: int
    lr: float
    image_size: int
    workers: int
    seed: int


def train(settings: Settings, images: ImageFolder, run: Path) -> dict:
    """Train one network and fill the run folder; files of an earlier run in it are removed first.

    SGD with Nesterov momentum, a learning rate that warms up and then falls along a cosine, label smoothing.
    The best epoch is the one with the highest validation accuracy, the lower loss among equals.

    Returns:
        The log record of the best epoch.

    Raises:
        InputError: pretrained weights cannot be had.
        FloatingPointError: the training loss became infinite or NaN.
    """
    console = rich.get_console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    num_classes = len(images.classes)
    model = build_model(settings.arch, num_classes, settings.cbam, settings.backend, settings.pretrained).to(device)
    loader = make_loader(images.train, settings.batch_size, settings.workers, shuffle_seed=settings.seed)
    val_loader = make_loader(images.val, settings.batch_size, settings.workers)
    steps = settings.epochs * len(loader)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.2)
    _start_run(run, settings, images, device)

    records, best, best_confusion = [], None, None
    with _progress(console) as progress, open(run / LOG, "w") as log:
        bar = progress.add_task("", total=steps, epoch=1, rate=0.0)
        for epoch in range(1, settings.epochs + 1):
            start, lr = time.perf_counter(), schedule.get_last_lr()[0]

            def after_step(seen: int, epoch: int = epoch, start: float = start) -> None:
                schedule.step()
                progress.update(bar, advance=1, epoch=epoch, rate=seen / (time.perf_counter() - start))

            train_loss, train_accuracy = _train_epoch(model, loader, criterion, optimizer, after_step)
            train_seconds = time.perf_counter() - start
            if not math.isfinite(train_loss):
                raise FloatingPointError(f"the training loss is {train_loss} in epoch {epoch}; try a lower --lr")
            val_loss, confusion = evaluate(model, val_loader, criterion, num_classes)
            counts = confusion.compute()
            record = {
                "epoch": epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "val_loss": val_loss,
                "val_accuracy": (counts.trace() / counts.sum()).item(),
                "seconds": round(time.perf_counter() - start, 2),
                "images_per_second": round(len(images.train) / train_seconds, 1),
            }
            records.append(record)
            log.write(json.dumps(record) + "\n")
            log.flush()
            improved = best is None or _rank(record) > _rank(best)
            if improved:
                best, best_confusion = record, confusion
            _save(run, settings, images.classes, model, record, (LAST, BEST) if improved else (LAST,))
            _print_epoch(console, record, settings.epochs)
    with replacing(run / CURVES) as path:
        draw_curves(records, best, path)
    with replacing(run / CONFUSION) as path:
        draw_confusion_matrix(best_confusion, images.classes, path)
    return best


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: DataLoader, criterion: nn.Module, num_classes: int
) -> tuple[float, MulticlassConfusionMatrix]:
    """The mean loss over a loader, and its confusion matrix (rows are true classes)."""
    device = next(model.parameters()).device
    confusion = MulticlassConfusionMatrix(num_classes).to(device)
    loss, seen = torch.zeros((), device=device), 0
    model.eval()
    for batch, labels in loader:
        labels = labels.to(device)
        logits = model(normalise(batch.to(device)))
        loss += criterion(logits, labels) * len(labels)
        seen += len(labels)
        confusion.update(logits, labels)
    return loss.item() / seen, confusion


def _train_epoch(
    model: nn.Module,
    loader: DataLoader,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    after_step: Callable[[int], None],
) -> tuple[float, float]:
    """Mean loss and accuracy of one pass; after_step gets the number of images seen so far."""
    device = next(model.parameters()).device
    # Summed on the device: reading a value at every step would make a GPU wait.
    loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    model.train()
    for batch, labels in loader:
        labels = labels.to(device)
        logits = model(normalise(batch.to(device)))
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        seen += len(labels)
        after_step(seen)
    return loss_sum.item() / seen, correct.item() / seen


def _rank(record: dict) -> tuple[float, float]:
    return record["val_accuracy"], -record["val_loss"]


def _start_run(run: Path, settings: Settings, images: ImageFolder, device: torch.device) -> None:
    run.mkdir(parents=True, exist_ok=True)
    for name in RUN_FILES:
        (run / name).unlink(missing_ok=True)
    fused = settings.backend == "fused" and settings.cbam != "none"
    config = asdict(settings) | {
        "train_images": len(images.train),
        "val_images": len(images.val),
        "unreadable": [str(path) for path in images.unreadable],
        "device": str(device),
        "cbam_kernels": functional.backend_for(torch.empty(0, device=device)) if fused else "reference",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    (run / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (run / CLASSES).write_text(json.dumps(dict(enumerate(images.classes)), indent=2, ensure_ascii=False) + "\n")


def _save(run: Path, settings: Settings, classes: list[str], model: nn.Module, record: dict, names: tuple) -> None:
    """A checkpoint that says of itself how to rebuild the network; torch.load(weights_only=True) reads it."""
    checkpoint = {
        "arch": settings.arch,
        "cbam": settings.cbam,
        "classes": classes,
        "image_size": settings.image_size,
        "epoch": record["epoch"],
        "metrics": record,
        "state_dict": model.state_dict(),
    }
    for name in names:
        with replacing(run / name) as path:
            torch.save(checkpoint, path)


def _progress(console: rich.console.Console) -> Progress:
    return Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _print_epoch(console: rich.console.Console, record: dict, epochs: int) -> None:
    console.print(
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  lr {record['lr']:.5f}  "
        f"train {record['train_loss']:.4f} {record['train_accuracy']:7.2%}  "
        f"val {record['val_loss']:.4f} {record['val_accuracy']:7.2%}  "
        f"{record['seconds']:.1f} s  {record['images_per_second']:.0f} images/s",
        soft_wrap=True,
        highlight=False,
    )
