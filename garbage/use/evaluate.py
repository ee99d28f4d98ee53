"""Evaluating a finished network on labelled images."""

from pathlib import Path

import rich
import torch
from torch import Tensor
from torchvision.datasets.folder import make_dataset

from .. import InputError
from ..data.sources import SUFFIXES, keep_apart
from ..report.metrics import Metrics
from ..report.predictions import Predictions, write_predictions
from ..report.tables import overall_table, per_class_table
from ..report.write import write_evaluation
from ..run.folder import CLASSES, CONFIG, EVALUATION, LOG, check_writable, load_run, replacing
from .inference import classify


def evaluate_folder(run: Path, folder: Path, out: Path) -> Metrics:
    """Classify a folder of class folders; print the figures, write plots, a page and the predictions.

    Args:
        run: a finished run, or a checkpoint file.
        folder: class folders, or train/ and val/ with such folders, of which val/ is taken. Images may lie at any
            depth below their class; files that cannot be read are named and left out.
        out: the folder for the results, outside of the class folders; results of an earlier evaluation in it are
            replaced.

    Raises:
        InputError: the checkpoint or a folder is of no use, or the class folders are not the checkpoint's classes.
    """
    check_writable(out)
    if any((out / name).exists() for name in (CONFIG, LOG, CLASSES)):
        raise InputError(f"{out} is the folder of a run, whose report would be overwritten; name another for --out")
    model, checkpoint = load_run(run)
    classes, size = checkpoint["classes"], checkpoint["image_size"]
    folder, samples = _labelled_images(folder, classes)
    keep_apart(out, [folder], "--out")
    console = rich.get_console()
    files, labels, rows = [], [], []
    for (path, label), (_, result) in zip(samples, classify(model, size, [p for p, _ in samples]), strict=True):
        if isinstance(result, Tensor):
            files.append(path.relative_to(folder).as_posix())
            labels.append(label)
            rows.append(result)
        else:
            console.print(f"left out {path}: {result}", style="red", soft_wrap=True, markup=False)
    if not rows:
        raise InputError(f"no image in {folder} can be read")
    predictions = Predictions(checkpoint["epoch"], classes, files, torch.tensor(labels), torch.stack(rows).clamp(0, 1))
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / EVALUATION) as path:
        write_predictions(predictions, path)
    metrics = write_evaluation(
        out, f"Evaluation on {folder}", predictions, lambda file: folder / file, model=model, image_size=size
    )
    console.print(per_class_table(classes, metrics), overall_table(metrics))
    right = int((predictions.predicted == predictions.labels).sum())
    console.print(
        f"accuracy {metrics.overall['accuracy']:.2%}: {right} of {len(files)} images; written to {out}",
        soft_wrap=True,
        markup=False,
    )
    return metrics


def _labelled_images(folder: Path, classes: list[str]) -> tuple[Path, list[tuple[Path, int]]]:
    """The folder that has the class folders, and its images with their labels."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if (folder / "val").is_dir() and "val" not in classes:
        folder = folder / "val"
    found = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    missing, unknown = sorted(set(classes) - found), sorted(found - set(classes))
    if missing or unknown:
        differences = []
        if missing:
            differences.append(f"has no folder for {', '.join(missing)}")
        if unknown:
            differences.append(f"has {', '.join(unknown)}, which the network does not know")
        raise InputError(f"{folder} does not have the classes of the checkpoint: it {' and '.join(differences)}")
    paths = make_dataset(str(folder), {c: i for i, c in enumerate(classes)}, SUFFIXES, allow_empty=True)
    return folder, [(Path(path), label) for path, label in paths]
