"""Metrics as tables: for the terminal, for the report, and as CSV."""

import csv
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .metrics import Metrics

OVERALL_NAMES = {
    "accuracy": "accuracy",
    "top_3_accuracy": "top-3 accuracy",
    "macro_recall": "mean recall",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "macro_ap": "macro AP",
    "negative_log_likelihood": "cross entropy",
    "calibration_error": "calibration error",
}
PER_CLASS_NAMES = {
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "auc": "AUC",
    "ap": "AP",
}
LOG_NAMES = {
    "epoch": "epoch",
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "train_accuracy": "training accuracy",
    "train_loss": "training loss",
    "lr": "learning rate",
    "seconds": "seconds",
    "images_per_second": "images per second",
}


def number(value: float, name: str) -> str:
    """A metric as text: accuracies in per cent, others with three decimals, "n/a" for NaN."""
    if value != value:
        return "n/a"
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.3f}"


def best_epoch_rows(record: dict) -> dict[str, str]:
    """The log record of an epoch with readable names; unknown entries keep their names."""
    rows = {}
    for key, value in record.items():
        if isinstance(value, float):
            value = f"{value:.2%}" if key.endswith("accuracy") else f"{value:.4g}"
        rows[LOG_NAMES.get(key, key)] = str(value)
    return rows


def best_epoch_table(record: dict) -> Table:
    """The log record of an epoch for the terminal."""
    table = Table("best epoch", "", box=SIMPLE_HEAD)
    for name, value in best_epoch_rows(record).items():
        table.add_row(escape(name), escape(value))
    return table


def overall_table(metrics: Metrics) -> Table:
    """The metrics over all classes for the terminal."""
    table = Table("all classes", "", box=SIMPLE_HEAD)
    for name, label in OVERALL_NAMES.items():
        table.add_row(label, number(metrics.overall[name], name))
    return table


def per_class_table(classes: list[str], metrics: Metrics) -> Table:
    """The metrics of each class for the terminal."""
    table = Table("class", *PER_CLASS_NAMES.values(), "images", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in table.columns[1:]:
        column.justify = "right"
    for i, name in enumerate(classes):
        values = (number(metrics.per_class[key][i].item(), key) for key in PER_CLASS_NAMES)
        table.add_row(escape(name), *values, str(int(metrics.support[i])))
    return table


def write_per_class_csv(classes: list[str], metrics: Metrics, path: Path) -> None:
    """The metrics of each class as CSV; empty if undefined."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *PER_CLASS_NAMES, "images"])
        for i, name in enumerate(classes):
            values = (metrics.per_class[key][i].item() for key in PER_CLASS_NAMES)
            writer.writerow([name, *(f"{v:.6f}" if v == v else "" for v in values), int(metrics.support[i])])
