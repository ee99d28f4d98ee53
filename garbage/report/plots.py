"""The figures of a report, written as PNG, and as SVG that follows the page's light or dark scheme."""

import io
import re
import warnings
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .metrics import MACRO, MICRO, Curve, Metrics, calibration_bins
from .predictions import Predictions

# Names of classes and files may contain "$", which matplotlib would parse as formulas.
matplotlib.rcParams["text.parse_math"] = False

PANELS = {"loss": "loss", "accuracy": "accuracy (%)", "lr": "learning rate"}
LEGIBLE = 40  # classes; for more, numbers in cells and a legend are too small, and an SVG too large
LABELLED = 100  # classes; for more, their names beside a matrix are too small
# Replaces matplotlib's black by a colour of the reader's scheme.
SVG_STYLE = (
    "<style>:root{--ink:#1c2733;fill:var(--ink)}"
    "@media (prefers-color-scheme:dark){:root{--ink:#dbe4ee}}@media print{:root{--ink:#1c2733}}</style>"
)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=120, format="png")
    figure.set_layout_engine("none")  # keep the computed layout for the SVG


def svg(figure: Figure) -> str:
    """A figure as SVG without background; black becomes light in a dark scheme."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has its own
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().replace("#000000", "var(--ink)")
    text = text[text.index("<svg") :]
    return re.sub(r"(<svg[^>]*>)", rf"\1{SVG_STYLE}", text, count=1)


def curves_figure(records: list[dict], best: dict, panels: tuple[str, ...] = tuple(PANELS)) -> Figure:
    """Loss, accuracy and learning rate over the epochs; records as in log.jsonl, best is one of them."""
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _curves_panel(axes, panel, records, best)
    return figure


def _curves_panel(axes: Axes, panel: str, records: list[dict], best: dict) -> None:
    epochs = [r["epoch"] for r in records]
    style = {"marker": "o", "markersize": 3} if len(epochs) <= LEGIBLE else {}
    if panel == "lr":
        axes.plot(epochs, [r["lr"] for r in records], color="tab:green", **style)
    else:
        scale = 100 if panel == "accuracy" else 1
        for part, colour in (("train", "tab:blue"), ("val", "tab:orange")):
            label = {"train": "training", "val": "validation"}[part]
            axes.plot(epochs, [scale * r[f"{part}_{panel}"] for r in records], color=colour, label=label, **style)
        value = scale * best[f"val_{panel}"]
        label = f"best epoch, {best['epoch']}: {value:.1f} %" if scale == 100 else f"best epoch: {value:.3f}"
        axes.plot(best["epoch"], value, "*", color="tab:red", markersize=12, label=label)
        axes.legend(frameon=False)
    axes.set(title=PANELS[panel], xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def confusion_figure(confusion: Tensor, classes: list[str], normalised: bool) -> Figure:
    """A confusion matrix, true class by row and predicted class by column.

    Args:
        confusion: counts (K, K).
        classes: K names.
        normalised: show per cent of the true class instead of counts. Colours always show per cent.
    """
    share = 100 * confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    num_classes = len(classes)
    side = min(2.2 + 0.42 * num_classes, 24)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    lines = {"edgecolors": "#8a94a0", "linewidth": 0.4} if num_classes <= LEGIBLE else {"rasterized": True}
    axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=100, **lines)
    if num_classes <= LEGIBLE:
        for row in range(num_classes):
            for column in range(num_classes):
                text = f"{share[row, column]:.0f}" if normalised else f"{confusion[row, column]}"
                colour = "#ffffff" if share[row, column] > 55 else "#12263d" if confusion[row, column] else "#9aa4af"
                place = {"ha": "center", "va": "center", "in_layout": False}
                axes.text(column + 0.5, row + 0.5, text, color=colour, fontsize=9, **place)
    ticks = [i + 0.5 for i in range(num_classes)] if num_classes <= LABELLED else []
    axes.set_xticks(ticks, classes[: len(ticks)], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes[: len(ticks)])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title("per cent of the true class" if normalised else "images")
    return figure


def roc_figure(metrics: Metrics) -> Figure:
    """ROC curves of each class against the rest, micro and macro average, with the areas under them."""
    figure, axes = _class_curves(metrics.roc, metrics.auc, "AUC")
    axes.plot([0, 1], [0, 1], color="#8a94a0", linewidth=0.8, linestyle=":")
    axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    return figure


def pr_figure(metrics: Metrics) -> Figure:
    """Precision over recall of each class against the rest, micro and macro average, with average precisions."""
    figure, axes = _class_curves(metrics.pr, metrics.ap, "AP", drawstyle="steps-post")
    axes.set(title="precision and recall", xlabel="recall", ylabel="precision")
    return figure


def _class_curves(curves: dict[str, Curve], areas: dict[str, float], area_name: str, **style) -> tuple[Figure, Axes]:
    named = len(curves) - 2 <= LEGIBLE
    rows = (len(curves) + 1) // 2 if named else 1
    figure = Figure(figsize=(5.4, 4.9 + 0.19 * rows), layout="constrained")
    axes = figure.subplots()
    averages = {MICRO: "--", MACRO: "-"}
    colours = matplotlib.colormaps["tab20"].colors
    for i, (name, (x, y)) in enumerate(curves.items()):
        label = f"{areas[name]:.3f} {name}"  # matplotlib skips labels that begin with "_"
        if name in averages:
            axes.plot(x, y, color="#000000", linewidth=1.8, linestyle=averages[name], label=label, **style)
        else:
            colour = colours[i % len(colours)] if named else "#8a94a0"
            label = label if named else None
            axes.plot(x, y, color=colour, linewidth=1, label=label, rasterized=not named, **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, title=area_name)
    return figure, axes


def calibration_figure(predictions: Predictions, error: float) -> Figure:
    """Accuracy over confidence in equal intervals; calibrated confidences are on the diagonal.

    The bars below show the number of images per interval; error is the expected calibration error.
    """
    count, confidence, accuracy = calibration_bins(predictions)
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#8a94a0", linestyle=":")
    full = count > 0
    upper.plot(confidence[full], accuracy[full], marker="o", color="tab:blue", label=f"calibration error {error:.3f}")
    upper.vlines(confidence[full], accuracy[full], confidence[full], color="tab:red", alpha=0.6, label="gap")
    upper.set(title="calibration", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(frameon=False, loc="upper left")
    bins = len(count)
    lower.bar([(i + 0.5) / bins for i in range(bins)], count.tolist(), width=0.9 / bins, color="tab:blue")
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure
