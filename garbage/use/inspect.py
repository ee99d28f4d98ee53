"""Inspects the images of a folder before training: counts, sizes, duplicates, samples."""

import dataclasses
import json
from pathlib import Path

import rich
from rich.markup import escape
from rich.table import Table

from ..data.augmentation import train_transform
from ..data.inspection import Inspection, inspect_folder
from ..report.data_plots import counts_figure, samples_figure, sizes_figure
from ..report.fonts import choose_fonts
from ..report.plots import save_png
from ..run.folder import CLASSES, SAMPLE_SET
from ..samples.draw import draw_sample_set
from ..settings import Settings

REPORT = "inspection.json"
SHOWN = 10


def inspect(settings: Settings, out: Path) -> None:
    """Print the statistics, and write them with the class indices and plots into ``out``."""
    if settings.data is None:
        data = out / SAMPLE_SET
        out.mkdir(parents=True, exist_ok=True)
        draw_sample_set(data)
    else:
        data = Path(settings.data)
    inspection = inspect_folder(data, settings.image_size, settings.workers)
    _print(inspection)
    out.mkdir(parents=True, exist_ok=True)
    stand_ins = choose_fonts(inspection.classes)
    drawn = dataclasses.replace(inspection, classes=[stand_ins.get(name, name) for name in inspection.classes])
    transform = train_transform(settings, settings.train_size(1))
    save_png(counts_figure(drawn), out / "class_counts.png")
    save_png(sizes_figure(inspection), out / "image_sizes.png")
    save_png(samples_figure(drawn, settings.image_size, transform, settings.seed), out / "samples.png")
    indices = json.dumps(dict(enumerate(inspection.classes)), indent=2, ensure_ascii=False)
    (out / CLASSES).write_text(indices + "\n", encoding="utf-8")
    (out / REPORT).write_text(json.dumps(_as_json(inspection), indent=2) + "\n", encoding="utf-8")
    rich.get_console().print(f"written to {out}", soft_wrap=True, markup=False)


def _print(inspection: Inspection) -> None:
    console = rich.get_console()
    table = Table("class", *inspection.parts)
    columns = [inspection.counts(part) for part in inspection.parts]
    for name, *counts in zip(inspection.classes, *columns, strict=True):
        table.add_row(escape(name), *map(str, counts))
    table.add_section()
    table.add_row("all", *(str(sum(counts)) for counts in columns))
    console.print(table)
    for what, axis in (("width", 0), ("height", 1)):
        sizes = sorted(size[axis] for size in inspection.sizes.values())
        _say(f"{what}: {sizes[0]} to {sizes[-1]} pixels, half of the images up to {sizes[len(sizes) // 2]}")
    _say(f"mean {_rounded(inspection.mean)}, standard deviation {_rounded(inspection.std)} (red, green, blue, of 1)")
    if inspection.unused:
        _say("not used for training: " + ", ".join(f"{folder.name}/" for folder in inspection.unused))
    for path, reason in inspection.unreadable.items():
        _say(f"unreadable, skipped in training: {path}: {reason}", "red")
    across = inspection.across()
    _say(f"{len(inspection.duplicates)} groups of duplicates, {len(across)} of them in both parts or several classes")
    for group in across[:SHOWN]:
        _say("  same pixels: " + ", ".join(map(str, group)), "red")
    if len(across) > SHOWN:
        _say(f"  and {len(across) - SHOWN} more, in {REPORT}")


def _say(text: str, style: str | None = None) -> None:
    rich.get_console().print(text, style=style, soft_wrap=True, markup=False, highlight=False)


def _rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _as_json(inspection: Inspection) -> dict:
    return {
        "classes": inspection.classes,
        "counts": {part: inspection.counts(part) for part in inspection.parts},
        "mean": inspection.mean,
        "std": inspection.std,
        "sizes": {str(path): size for path, size in inspection.sizes.items()},
        "unreadable": {str(path): reason for path, reason in inspection.unreadable.items()},
        "duplicates": [[str(path) for path in group] for group in inspection.duplicates],
        "duplicates_across": [[str(path) for path in group] for group in inspection.across()],
    }
