"""What a run leaves for the eye: curves and the confusion matrix."""

from pathlib import Path

from matplotlib.figure import Figure
from torchmetrics.classification import MulticlassConfusionMatrix


def draw_curves(records: list[dict], best: dict, path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs as one PNG; records as in log.jsonl, best one of them."""
    epochs = [r["epoch"] for r in records]
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, lr = figure.subplots(1, 3)
    style = {"marker": "o", "markersize": 3}
    for axes, name, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for part, colour in (("train", "tab:blue"), ("val", "tab:orange")):
            axes.plot(epochs, [scale * r[f"{part}_{name}"] for r in records], color=colour, label=part, **style)
    label = f"best: {100 * best['val_accuracy']:.1f} %, epoch {best['epoch']}"
    accuracy.plot(best["epoch"], 100 * best["val_accuracy"], "*", color="tab:red", markersize=12, label=label)
    lr.plot(epochs, [r["lr"] for r in records], color="tab:green", **style)
    for axes, title in ((loss, "loss"), (accuracy, "accuracy (%)"), (lr, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    loss.legend()
    accuracy.legend(loc="lower right")
    figure.savefig(path, dpi=120, format="png")


def draw_confusion_matrix(metric: MulticlassConfusionMatrix, classes: list[str], path: Path) -> None:
    """The counts of a confusion matrix as one PNG: true class by row, predicted class by column.

    Beyond 60 classes the numbers would be too small to read, and only the colours are drawn.
    """
    side = min(2.5 + 0.55 * len(classes), 40)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    metric.plot(ax=axes, labels=classes, cmap="Blues", add_text=len(classes) <= 60)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(axis="x", rotation=45)
    axes.tick_params(axis="y", rotation=0)
    figure.savefig(path, dpi=120, format="png")
