"""Classifying images with a finished run."""

import csv
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rich
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from .checkpoint import PREDICTIONS, check_writable, load_run, replacing
from .data import normalise, try_decode

BATCH = 64
TOP = 3

Prediction = tuple[Path, list[tuple[str, float]]]


def predict(run: Path, sources: list[Path], csv_path: Path | None = None) -> int:
    """Classify images and those in folders, at any depth; print a table and write a CSV file.

    A file that is missing or cannot be read is named and left out. Where images lie in folders named after
    classes, the accuracy over those is printed too.

    Args:
        run: a finished run.
        sources: image files, or folders of them.
        csv_path: default predictions.csv in the run.

    Returns:
        How many images were classified. If none was, no CSV file is written.

    Raises:
        InputError: the run or the place of the CSV file is of no use.
    """
    csv_path = csv_path or run / PREDICTIONS
    check_writable(csv_path.parent)
    model, checkpoint = load_run(run)
    console = rich.get_console()
    predictions: list[Prediction] = []
    start = time.perf_counter()
    for path, result in _classify(model, checkpoint, _images(sources)):
        if isinstance(result, str):
            console.print(f"skipped {path}: {result}", style="red", soft_wrap=True, markup=False)
        else:
            predictions.append((path, result))
    rate = len(predictions) / (time.perf_counter() - start)
    if not predictions:
        return 0

    table = Table("image", "class", "probability", f"top {TOP}")
    table.columns[0].overflow = "fold"
    for path, best in predictions:
        row = str(path), best[0][0], f"{best[0][1]:.1%}", ", ".join(f"{c} {p:.1%}" for c, p in best)
        table.add_row(*map(escape, row))
    console.print(table)
    csv_path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(csv_path) as temporary:
        _write_csv(predictions, temporary)

    known = [(path.parent.name, best[0][0]) for path, best in predictions if path.parent.name in checkpoint["classes"]]
    if known:
        right = sum(truth == found for truth, found in known)
        console.print(
            f"accuracy {right / len(known):.2%}: {right} of {len(known)} images in folders named after a class"
        )
    console.print(
        f"classified {len(predictions)} images, {rate:.0f} a second; written to {csv_path}",
        soft_wrap=True,
        markup=False,
    )
    return len(predictions)


def _images(sources: list[Path]) -> list[Path]:
    """The sources themselves, with each folder replaced by the images below it; every path once."""
    paths: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            paths |= dict.fromkeys(p for p in sorted(source.rglob("*")) if p.suffix.lower() in IMG_EXTENSIONS)
        else:
            paths[source] = None
    return list(paths)


def _classify(
    model: nn.Module, checkpoint: dict, paths: list[Path]
) -> Iterator[tuple[Path, list[tuple[str, float]] | str]]:
    """Each path with its most probable classes, best first, or with the reason why it cannot be read."""
    classes, size = checkpoint["classes"], checkpoint["image_size"]
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            decoded = list(pool.map(lambda path: try_decode(path, size), batch))
            images = [image for image in decoded if isinstance(image, Tensor)]
            if images:
                with torch.inference_mode():
                    probabilities = model(normalise(torch.stack(images))).softmax(1)
                top = zip(*(t.tolist() for t in probabilities.topk(min(TOP, len(classes)))), strict=True)
            for path, image in zip(batch, decoded, strict=True):
                if isinstance(image, str):
                    yield path, image
                else:
                    values, indices = next(top)
                    yield path, [(classes[i], p) for i, p in zip(indices, values, strict=True)]


def _write_csv(predictions: list[Prediction], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ranks = range(1, len(predictions[0][1]) + 1)
        writer.writerow(["path", *(name for r in ranks for name in (f"class_{r}", f"probability_{r}"))])
        for image, best in predictions:
            writer.writerow([image, *(value for c, p in best for value in (c, f"{p:.6f}"))])
