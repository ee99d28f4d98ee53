"""The same training without CBAM, with CBAM in plain PyTorch, and with the fused kernels."""

import dataclasses
import json
import statistics
from pathlib import Path

import rich
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .. import Interrupted
from ..data.folders import ImageFolder
from ..report.plots import save_png
from ..report.write import read_log
from ..run.folder import LOG, replacing
from ..settings import Settings
from .loop import train

COMPARISON, PLOT = "comparison.json", "comparison.png"
RUNS = {
    "none": {"cbam": "none", "cbam_init": "default"},
    "reference": {"backend": "reference"},
    "fused": {"backend": "fused"},
}
TITLES = {"none": "no CBAM", "reference": "plain CBAM", "fused": "fused CBAM"}


def compare(settings: Settings, images: ImageFolder, out: Path) -> dict:
    """Train the three networks one after another with one seed on the same images; print and write the differences.

    Args:
        settings: of all three, except the backend; cbam (not "none") and cbam_init of the two with CBAM.
        images: of all three.
        out: folder for the run folders of RUNS, comparison.json and comparison.png.

    Returns:
        The contents of comparison.json.

    Raises:
        as train; a comparison cannot resume after Interrupted.
    """
    console = rich.get_console()
    records = {}
    for name, changes in RUNS.items():
        console.rule(TITLES[name])
        try:
            train(dataclasses.replace(settings, **changes), images, out / name)
        except Interrupted:  # its message says how to resume this single run
            raise Interrupted(f"stopped in {out / name}; a comparison cannot resume: start it again") from None
        records[name] = read_log(out / name / LOG)
    result = summarise(records)
    with replacing(out / COMPARISON) as path:
        path.write_text(json.dumps({"settings": dataclasses.asdict(settings)} | result, indent=2) + "\n")
    with replacing(out / PLOT) as path:
        save_png(comparison_figure(records, result), path)
    console.print(_table(result))
    for loss, difference in result["largest_difference"].items():
        console.print(
            f"{loss.replace('_', ' ')}, plain and fused CBAM: largest difference {difference['value']:.2g} "
            f"in epoch {difference['epoch']}, where it is {difference['reference']:.4f}",
            soft_wrap=True,
        )
    console.print(f"written to {out}", soft_wrap=True, markup=False)
    return result


def summarise(records: dict[str, list[dict]]) -> dict:
    """The differences between the logs of RUNS.

    Returns:
        runs: by name, accuracy and loss of the best epoch and the median seconds per epoch.
        cbam_tax: by name, the seconds that CBAM adds to an epoch, relative to an epoch without it.
        largest_difference: by loss, between reference and fused: value, epoch, and the reference's loss in that epoch.
    """
    runs = {}
    for name, log in records.items():
        best = max(log, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
        runs[name] = {
            "val_accuracy": best["val_accuracy"],
            "val_loss": best["val_loss"],
            "best_epoch": best["epoch"],
            "seconds_per_epoch": statistics.median(r["seconds"] for r in log),
            "images_per_second": statistics.median(r["images_per_second"] for r in log),
        }
    base = runs["none"]["seconds_per_epoch"]
    largest = {}
    for loss in ("train_loss", "val_loss"):
        pairs = zip(records["reference"], records["fused"], strict=False)  # one may have stopped early
        value, epoch, reference = max((abs(a[loss] - b[loss]), a["epoch"], a[loss]) for a, b in pairs)
        largest[loss] = {"value": value, "epoch": epoch, "reference": reference}
    return {
        "runs": runs,
        "cbam_tax": {name: runs[name]["seconds_per_epoch"] / base - 1 for name in ("reference", "fused")},
        "largest_difference": largest,
    }


def comparison_figure(records: dict[str, list[dict]], result: dict) -> Figure:
    """Training loss and validation accuracy of the three runs, and the seconds per epoch."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, time = figure.subplots(1, 3)
    styles = {"none": ("#8a94a0", "-"), "reference": ("tab:orange", "-"), "fused": ("tab:blue", "--")}
    for name, log in records.items():
        colour, line = styles[name]
        epochs = [r["epoch"] for r in log]
        loss.plot(epochs, [r["train_loss"] for r in log], color=colour, linestyle=line, label=TITLES[name])
        accuracy.plot(epochs, [100 * r["val_accuracy"] for r in log], color=colour, linestyle=line)
    loss.legend(frameon=False)
    seconds = [result["runs"][name]["seconds_per_epoch"] for name in RUNS]
    bars = time.bar([TITLES[n] for n in RUNS], seconds, color=[styles[n][0] for n in RUNS])
    tax = ["", *(f"\nCBAM tax {result['cbam_tax'][n]:+.1%}" for n in ("reference", "fused"))]
    time.bar_label(bars, [f"{s:.1f} s{t}" for s, t in zip(seconds, tax, strict=True)])
    time.margins(y=0.2)
    for axes, title in ((loss, "training loss"), (accuracy, "validation accuracy (%)")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    time.set_title("seconds per epoch (median)")
    return figure


def _table(result: dict) -> Table:
    table = Table("network", "accuracy", "best epoch", "s per epoch", "images/s", "CBAM tax", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, run in result["runs"].items():
        tax = f"{result['cbam_tax'][name]:+.1%}" if name in result["cbam_tax"] else ""
        figures = f"{run['val_accuracy']:.2%}", str(run["best_epoch"]), f"{run['seconds_per_epoch']:.2f}"
        table.add_row(TITLES[name], *figures, f"{run['images_per_second']:.0f}", tax)
    return table
