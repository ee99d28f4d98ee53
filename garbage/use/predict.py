"""Classifies images with a network."""

import csv
import json
import time
from pathlib import Path

import rich
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from .. import InputError
from ..data.sources import find_images, keep_apart, nfc, output_paths
from ..report.fonts import choose_fonts
from ..run.folder import check_writable, load_run, replacing
from .annotation import annotate_image
from .inference import classify

Best = list[tuple[str, float]]  # classes and their probabilities, the most probable first


def predict(
    run: Path, sources: list[Path], csv_path: Path, json_path: Path, top: int = 3, annotate: Path | None = None
) -> int:
    """Classify images and folders of images at any depth; print a table, write it as CSV and JSON.

    Missing and unreadable files are reported and skipped. For images in folders named after classes, the accuracy is
    printed, too.

    Args:
        run: a finished run, or a checkpoint file.
        sources: image files, or folders of them.
        csv_path, json_path: files for the tables.
        top: number of classes shown per image.
        annotate: a folder for copies of the images with their classes below them, outside the sources.

    Returns:
        The number of classified images. If it is 0, nothing is written.

    Raises:
        InputError: an invalid run or output path.
    """
    if csv_path.resolve() == json_path.resolve():
        raise InputError(f"--csv and --json are one file, {csv_path}: the one would replace the other")
    images, passed_over = find_images(sources)
    for folder in filter(None, (csv_path.parent, json_path.parent, annotate)):
        check_writable(folder)
    if annotate:
        keep_apart(annotate, sources, "--annotate")
    model, checkpoint = load_run(run)
    classes = checkpoint["classes"]
    console = rich.get_console()
    predictions: dict[Path, Best] = {}
    skipped: dict[Path, str] = {}
    start = time.perf_counter()
    for path, result in classify(model, checkpoint["image_size"], list(images)):
        if isinstance(result, Tensor):
            values, indices = result.topk(min(top, len(classes)))
            predictions[path] = [(classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]
        else:
            skipped[path] = result
            console.print(f"skipped {path}: {result}", style="red", soft_wrap=True, markup=False)
    rate = len(predictions) / (time.perf_counter() - start)
    if passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(passed_over.items()))
        console.print(f"passed over files that are no images: {kinds}", soft_wrap=True, markup=False)
    if not predictions:
        return 0

    console.print(_table(predictions))
    for path, write in ((csv_path, _write_csv), (json_path, _write_json)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write(predictions, skipped, temporary)
    if annotate:
        stand_ins = choose_fonts(classes)
        for path, target in output_paths({path: images[path] for path in predictions}, annotate, ".jpg").items():
            target.parent.mkdir(parents=True, exist_ok=True)
            annotate_image(path, [(stand_ins.get(name, name), p) for name, p in predictions[path]], target)
    folders = {path: nfc(path.parent.name) for path in predictions}
    known = [(folders[path], best[0][0]) for path, best in predictions.items() if folders[path] in classes]
    if known:
        right = sum(truth == found for truth, found in known)
        console.print(
            f"accuracy {right / len(known):.2%}: {right} of {len(known)} images in folders named after a class"
        )
    left_out = f", skipped {len(skipped)}" if skipped else ""
    written = ", ".join(str(path) for path in (csv_path, json_path, annotate) if path)
    console.print(
        f"classified {len(predictions)} images, {rate:.0f} a second{left_out}; written to {written}",
        soft_wrap=True,
        markup=False,
    )
    return len(predictions)


def _table(predictions: dict[Path, Best]) -> Table:
    table = Table("image", "class", "probability", f"top {len(next(iter(predictions.values())))}")
    table.columns[0].overflow = "fold"
    for path, best in predictions.items():
        row = str(path), best[0][0], f"{best[0][1]:.1%}", ", ".join(f"{c} {p:.1%}" for c, p in best)
        table.add_row(*map(escape, row))
    return table


def _write_csv(predictions: dict[Path, Best], skipped: dict[Path, str], path: Path) -> None:
    """A line for each classified image."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ranks = range(1, len(next(iter(predictions.values()))) + 1)
        writer.writerow(["path", *(name for r in ranks for name in (f"class_{r}", f"probability_{r}"))])
        for image, best in predictions.items():
            writer.writerow([image, *(value for c, p in best for value in (c, f"{p:.6f}"))])


def _write_json(predictions: dict[Path, Best], skipped: dict[Path, str], path: Path) -> None:
    content = {
        "images": [
            {"path": str(image), "top": [{"class": c, "probability": round(p, 6)} for c, p in best]}
            for image, best in predictions.items()
        ],
        "skipped": [{"path": str(image), "reason": reason} for image, reason in skipped.items()],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escapes for names that are not UTF-8
