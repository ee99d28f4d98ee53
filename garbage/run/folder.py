"""The files of a run folder, and atomic writes."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from cbam_fused import routing

from .. import InputError
from ..data.pixels import is_utf8
from ..data.sources import nfc
from ..model.classifier import build_model, check_backend
from ..settings import ENVIRONMENT, Settings, read_file

CONFIG, CLASSES, LOG = "config.json", "class_indices.json", "log.jsonl"
BEST, LAST = "best.pt", "last.pt"
VAL_PREDICTIONS, EVALUATION = "val_predictions.json", "evaluation.json"
REPORT, METRICS, PER_CLASS_CSV = "report.html", "metrics.json", "per_class.csv"
CURVES = "curves.png"
PREDICTION_PLOTS = (
    *("confusion_matrix.png", "confusion_matrix_normalised.png"),
    *("roc.png", "precision_recall.png", "calibration.png"),
)
PREDICTIONS_CSV, PREDICTIONS_JSON = "predictions.csv", "predictions.json"
TENSORBOARD, SAMPLE_SET = "tensorboard", "sample_set"
RUN_FILES = (
    *(CONFIG, CLASSES, LOG, BEST, LAST, VAL_PREDICTIONS, REPORT, METRICS, PER_CLASS_CSV),
    *(CURVES, *PREDICTION_PLOTS, PREDICTIONS_CSV, PREDICTIONS_JSON),
)


def check_writable(folder: Path) -> None:
    """Raise InputError unless the folder can be created or written to, and its path is UTF-8."""
    if not is_utf8(folder.absolute()):
        raise InputError(f"{folder} cannot be written: its path is not UTF-8")
    existing = _existing(folder)
    if not existing.is_dir():
        raise InputError(f"{folder} cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: no permission in {existing}")


def check_space(folder: Path, needed: int) -> None:
    """Raise InputError unless the folder's disk has this many bytes free."""
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        raise InputError(f"{folder} needs {needed / 1e6:,.0f} MB, but its disk has only {free / 1e6:,.0f} MB free")


def _existing(folder: Path) -> Path:
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside the given one, which it replaces atomically if the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # otherwise a power cut could leave an empty file under the new name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Create the folder and lock it against training by other processes; the lock ends with the process.

    Raises:
        InputError: another process has the lock.
    """
    run.mkdir(parents=True, exist_ok=True)
    folder = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is training in {run}") from None
        yield
    finally:
        os.close(folder)


def home_of(run: Path) -> Path:
    """The folder of a run, or of a checkpoint file."""
    return run.parent if run.is_file() else run


def data_folder(run: Path) -> Path | None:
    """The folder of a run's images in its config.json; None without such a file."""
    config = read_config(run)
    if not config:
        return None
    return run / SAMPLE_SET if config["data"] is None else Path(config["data"])


def read_config(run: Path) -> dict:
    """The settings of a run, and its environment under that name; empty without a config.json.

    Raises:
        InputError: the file is damaged.
    """
    path = run / CONFIG
    if not path.exists():
        return {}
    config = read_file(path)
    try:
        missing = {"data", "arch", "cbam"} - config.keys()
        if missing:
            raise InputError(f"it lacks {', '.join(sorted(missing))}")
        Settings(data=config["data"])
        if not isinstance(config.setdefault(ENVIRONMENT, {}), dict):
            raise InputError(f"{ENVIRONMENT} must be a table, got {config[ENVIRONMENT]!r}")
    except InputError as error:
        raise InputError(f"{path} is not the config of a run: {error}") from error
    return config


def write_config(run: Path, config: dict) -> None:
    """Write what read_config reads."""
    with replacing(run / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


def run_files(run: Path) -> list[Path]:
    """The files in a run folder written by this program, without folders."""
    return [run / name for name in RUN_FILES if (run / name).exists()]


def remove_leftovers(run: Path) -> None:
    """Delete temporary files and folders of a killed process."""
    for name in RUN_FILES:
        for path in run.glob(f".{name}.*"):
            path.unlink()
    for path in run.glob(f".{SAMPLE_SET}-*"):
        shutil.rmtree(path)


# Entries of every checkpoint, other than the metrics.
ENTRIES = {
    **{"arch": str, "cbam": str, "cbam_init": str, "classes": list, "image_size": int, "epoch": int},
    "state_dict": dict,
}


def check_entries(checkpoint: dict) -> None:
    """Raise an exception unless the entries exist with their types and all weights are finite."""
    for name, kind in ENTRIES.items():
        if not isinstance(checkpoint[name], kind):
            raise TypeError(f"{name} is a {type(checkpoint[name]).__name__}, not a {kind.__name__}")
    if checkpoint["image_size"] < 1:
        raise ValueError(f"image_size is {checkpoint['image_size']}")
    for name, t in checkpoint["state_dict"].items():
        if isinstance(t, torch.Tensor) and not t.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def load_run(run: Path, backend: str = "fused") -> tuple[nn.Module, dict]:
    """The best network of a run, in eval mode, and its checkpoint (arch, cbam, classes, image_size, epoch, metrics).

    Args:
        run: the folder of a run, or a checkpoint file.
        backend: one of BACKENDS; "reference" if CBAM_FUSED_BACKEND names a GPU backend, as for training.

    Raises:
        InputError: the run has no checkpoint of this program, or CBAM_FUSED_BACKEND names an unavailable backend.
    """
    path = run if run.is_file() else run / BEST
    if routing.wanted in ("cuda", "triton"):
        backend = "reference"  # the network is on the CPU
    if backend == "fused":
        check_backend(torch.device("cpu"))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        check_entries(checkpoint)
        model = build_model(
            checkpoint["arch"], len(checkpoint["classes"]), checkpoint["cbam"], backend, checkpoint["cbam_init"]
        )
        model.load_state_dict(checkpoint["state_dict"])
        checkpoint["classes"] = [nfc(name) for name in checkpoint["classes"]]
        if len(set(checkpoint["classes"])) < len(checkpoint["classes"]):
            raise ValueError("two of its classes have one name")
    except FileNotFoundError:
        raise InputError(f"{run} is not a finished run: it has no {BEST}") from None
    except Exception as error:  # a file that is not a checkpoint fails in as many ways as there are files
        raise InputError(f"{path} is not a checkpoint of this program: {type(error).__name__}: {error}") from error
    return model.eval().to(memory_format=torch.channels_last), checkpoint
