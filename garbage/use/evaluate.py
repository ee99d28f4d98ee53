"""Evaluates a network on labelled images."""

from pathlib import Path

import rich
import torch
from torch import Tensor

from .. import InputError
from ..data.classes import labelled_images
from ..data.sources import keep_apart
from ..report.metrics import Metrics
from ..report.predictions import Predictions, write_predictions
from ..report.tables import overall_table, per_class_table
from ..report.write import write_evaluation
from ..run.folder import CLASSES, CONFIG, EVALUATION, LOG, check_writable, load_run, replacing
from .inference import classify


def evaluate_folder(run: Path, folder: Path, out: Path) -> Metrics:
    """Classify a folder of class folders; print the metrics, write plots, a page and the predictions.

    Args:
        run: a finished run, or a checkpoint file.
        folder: class folders, or parts with such folders; uses val/, or test/ without val/. Images may be at any depth
            below their class. Unreadable files and classes without images are reported and skipped.
        out: the folder for the results, outside the class folders; results of an earlier evaluation are replaced.

    Raises:
        InputError: an invalid checkpoint or folder, or a class folder that the checkpoint does not know.
    """
    check_writable(out)
    if any((out / name).exists() for name in (CONFIG, LOG, CLASSES)):
        raise InputError(f"{out} is the folder of a run, whose report would be overwritten; name another for --out")
    model, checkpoint = load_run(run)
    classes, size = checkpoint["classes"], checkpoint["image_size"]
    folder, samples = labelled_images(folder, classes)
    keep_apart(out, [folder], "--out")
    console = rich.get_console()
    files, labels, rows = [], [], []
    for (path, label), (_, result) in zip(samples, classify(model, size, [p for p, _ in samples]), strict=True):
        if isinstance(result, Tensor):
            files.append(path.relative_to(folder).as_posix())
            labels.append(label)
            rows.append(result)
        else:
            console.print(f"skipped {path}: {result}", style="red", soft_wrap=True, markup=False)
    if not rows:
        raise InputError(f"no image in {folder} can be read")
    absent = [name for label, name in enumerate(classes) if label not in labels]
    if absent:
        console.print(
            f"{folder} has no images of {', '.join(absent)}: the figures are those of the other "
            f"{len(classes) - len(absent)} classes",
            soft_wrap=True,
            markup=False,
        )
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
