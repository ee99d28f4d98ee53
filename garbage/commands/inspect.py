"""The command inspect."""

import argparse
import json
from pathlib import Path

import rich
from rich.markup import escape
from rich.table import Table

from ..data.augmentation import train_transform
from ..data.inspection import Inspection, inspect_folder
from ..report.data_plots import counts_figure, samples_figure, sizes_figure
from ..report.plots import save_png
from ..run.folder import CLASSES, SAMPLE_SET, check_writable
from ..samples.draw import draw_sample_set
from .arguments import add_data, add_settings, settings_from

DEFAULT_OUT = Path("runs/inspect")
REPORT = "inspection.json"
SHOWN = 10


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("inspect", help="look at images before training: counts, sizes, duplicates, samples")
    parser.set_defaults(run_command=_inspect)
    add_data(parser, default="the sample set")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=DEFAULT_OUT, help="folder for the results (default: %(default)s)"
    )
    add_settings(parser, "settings of training, of which image size and augmentation matter here")


def _inspect(args: argparse.Namespace) -> int:
    check_writable(args.out)
    settings = settings_from(args, args.out)
    if settings.data is None:
        data = args.out / SAMPLE_SET
        args.out.mkdir(parents=True, exist_ok=True)
        draw_sample_set(data)
    else:
        data = Path(settings.data)
    inspection = inspect_folder(data, settings.image_size, settings.workers)
    _print(inspection)
    args.out.mkdir(parents=True, exist_ok=True)
    transform = train_transform(settings, settings.train_size(1))
    save_png(counts_figure(inspection), args.out / "class_counts.png")
    save_png(sizes_figure(inspection), args.out / "image_sizes.png")
    save_png(samples_figure(inspection, settings.image_size, transform, settings.seed), args.out / "samples.png")
    indices = json.dumps(dict(enumerate(inspection.classes)), indent=2, ensure_ascii=False)
    (args.out / CLASSES).write_text(indices + "\n", encoding="utf-8")
    (args.out / REPORT).write_text(json.dumps(_as_json(inspection), indent=2) + "\n", encoding="utf-8")
    rich.get_console().print(f"written to {args.out}", soft_wrap=True, markup=False)
    return 0


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
    for path, reason in inspection.unreadable.items():
        _say(f"unreadable, left out in training: {path}: {reason}", "red")
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
