"""What a run folder holds, and files that are either complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from . import InputError
from .model import build_model

CONFIG, CLASSES, LOG = "config.json", "class_indices.json", "log.jsonl"
BEST, LAST = "best.pt", "last.pt"
VAL_PREDICTIONS, EVAL_PREDICTIONS = "val_predictions.json", "predictions.json"
REPORT, METRICS, PER_CLASS_CSV = "report.html", "metrics.json", "per_class.csv"
CURVES, CONFUSION, PREDICTIONS = "curves.png", "confusion_matrix.png", "predictions.csv"
RUN_FILES = (CONFIG, CLASSES, LOG, BEST, LAST, CURVES, CONFUSION, PREDICTIONS)


def check_writable(folder: Path) -> None:
    """Raise InputError unless the folder can be made, or exists and can be written to."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"{folder} cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: no permission in {existing}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside the given one, which it replaces in one step if the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_run(run: Path, backend: str = "fused") -> tuple[nn.Module, dict]:
    """The best network of a run, in eval mode, and its checkpoint (arch, cbam, classes, image_size, epoch, metrics).

    Args:
        run: the folder of a run, or a checkpoint file.
        backend: one of BACKENDS.

    Raises:
        InputError: the run holds no checkpoint of this program.
    """
    path = run if run.is_file() else run / BEST
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = build_model(checkpoint["arch"], len(checkpoint["classes"]), checkpoint["cbam"], backend)
        model.load_state_dict(checkpoint["state_dict"])
    except FileNotFoundError:
        raise InputError(f"{run} is not a finished run: it has no {BEST}") from None
    except Exception as error:  # a file that is not a checkpoint fails in as many ways as there are files
        raise InputError(f"{path} is not a checkpoint of this program: {type(error).__name__}: {error}") from error
    return model.eval(), checkpoint
