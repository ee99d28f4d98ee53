"""Writes the plots, tables and report.html of a run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from .. import InputError
from ..run.folder import (
    BEST,
    CURVES,
    LOG,
    METRICS,
    PER_CLASS_CSV,
    REPORT,
    VAL_PREDICTIONS,
    data_folder,
    load_run,
    read_config,
    replacing,
)
from ..settings import ENVIRONMENT
from . import gallery
from .fonts import choose_fonts
from .metrics import MICRO, Metrics, compute_metrics
from .page import Section, bar_cell, document, figure, svg_uri, table, tiles
from .plots import PANELS, calibration_figure, confusion_figure, curves_figure, pr_figure, roc_figure, save_png, svg
from .predictions import Predictions, read_predictions
from .tables import LOG_NAMES, OVERALL_NAMES, PER_CLASS_NAMES, best_epoch_rows, number, write_per_class_csv

CONFUSED_PAIRS = 8


def write_report(run: Path) -> dict:
    """Draw every plot of a run and its report.html, from the log and the predictions of the best epoch.

    Attention maps also need the checkpoint, and the mistakes the photos; if these are missing, the page says so.

    Returns:
        The log record of the best epoch.

    Raises:
        InputError: the log or the predictions are missing, or a file is damaged; nothing was written.
    """
    predictions = read_predictions(run / VAL_PREDICTIONS)
    records = read_log(run / LOG)
    best = next((r for r in records if r["epoch"] == predictions.epoch), None)
    if best is None:
        raise InputError(f"{run / LOG} has no epoch {predictions.epoch}, which {VAL_PREDICTIONS} is of")
    config, data = read_config(run), data_folder(run) or run
    network, reason = None, f"the run has no {BEST}"
    if (run / BEST).exists():
        model, checkpoint = load_run(run)
        network = model, checkpoint["image_size"]
    metrics = compute_metrics(predictions)

    with replacing(run / CURVES) as path:
        save_png(curves_figure(records, best), path)
    curves = "".join(
        figure(svg_uri(svg(curves_figure(records, best, (panel,)))), f"{name} over the epochs")
        for panel, name in PANELS.items()
    )
    training = f'<div class="grid">\n{curves}</div>\n<h3>Best epoch</h3>\n{tiles(best_epoch_rows(best))}'
    seconds = sum(r["seconds"] for r in records)
    summary = tiles(
        {
            "accuracy": f"{metrics.overall['accuracy']:.1%}",
            "macro F1": f"{metrics.overall['macro_f1']:.3f}",
            "macro AUC": number(metrics.overall["macro_auc"], ""),
            "calibration error": f"{metrics.overall['calibration_error']:.3f}",
            "best epoch": f"{best['epoch']} of {len(records)}",
            "training time": f"{seconds / 60:.1f} min",
        }
    )
    sections = [
        Section("summary", "Summary", summary),
        Section("training", "Training", training),
        *_figures(predictions, metrics, run),
        *_photos(predictions, lambda file: data / file, network, reason),
    ]
    if config:
        sections.append(Section("settings", "Settings", _settings(config)))
    network = f"{config['arch']}, CBAM {config['cbam']}: " if config else ""
    _write_page(
        run / REPORT,
        f"Garbage classifier: {run.absolute().name}",
        f"{network}{len(predictions.files)} validation images, {len(predictions.classes)} classes",
        sections,
    )
    return best


def read_log(path: Path) -> list[dict]:
    """The records of log.jsonl, one per epoch.

    Raises:
        InputError: there is no such file, it is empty, or a line is not the record of an epoch.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise InputError(f"{path.parent} is not a run: it has no {path.name}") from None
    records = []
    for i, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            for name in LOG_NAMES:
                if not isinstance(record[name], int | float):
                    raise TypeError(f"{name} is {record[name]!r}")
        except (ValueError, TypeError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"line {i} of {path} is not the record of an epoch: {reason}") from error
        records.append(record)
    if not records:
        raise InputError(f"{path} is empty: no epoch of the run has finished")
    return records


def write_evaluation(
    out: Path, title: str, predictions: Predictions, locate: Callable[[str], Path], model: nn.Module, image_size: int
) -> Metrics:
    """Write the plots of predictions and a page with them into a folder.

    Args:
        out: an existing folder.
        title: of the page.
        predictions: of the model.
        locate: finds a file of the predictions.
        model, image_size: for the attention maps.

    Returns:
        The metrics.
    """
    metrics = compute_metrics(predictions)
    overall = {label: number(metrics.overall[name], name) for name, label in OVERALL_NAMES.items()}
    sections = [
        Section("summary", "Summary", tiles(overall)),
        *_figures(predictions, metrics, out),
        *_photos(predictions, locate, (model, image_size), ""),
    ]
    subtitle = (
        f"{len(predictions.files)} images, {len(predictions.classes)} classes, network of epoch {predictions.epoch}"
    )
    _write_page(out / REPORT, title, subtitle, sections)
    return metrics


def _figures(predictions: Predictions, metrics: Metrics, out: Path) -> list[Section]:
    """The sections from the predictions; also writes their plots, metrics and table into the folder."""
    classes, stand_ins = predictions.classes, choose_fonts(predictions.classes)
    drawn = _plots(predictions, metrics, {})
    for name, plot in (_plots(predictions, metrics, stand_ins) if stand_ins else drawn).items():
        with replacing(out / f"{name}.png") as path:
            save_png(plot, path)
    with replacing(out / METRICS) as path:
        path.write_text(json.dumps(_as_json(classes, metrics), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(out / PER_CLASS_CSV) as path:
        write_per_class_csv(classes, metrics, path)

    images = {name: svg_uri(svg(plot)) for name, plot in drawn.items()}
    accuracy = metrics.overall["accuracy"]
    confusion = (
        '<div class="grid wide">\n'
        + figure(images["confusion_matrix_normalised"], "confusion matrix in per cent of the true class")
        + figure(images["confusion_matrix"], "confusion matrix in images")
        + "</div>\n"
        + _confused_pairs(classes, metrics)
    )
    curves = (
        '<div class="grid wide">\n'
        + figure(images["roc"], f"ROC curves, macro AUC {number(metrics.overall['macro_auc'], '')}")
        + figure(images["precision_recall"], f"precision over recall, macro AP {metrics.overall['macro_ap']:.3f}")
        + "</div>\n<p>Each class against all others. Micro: every pair of an image and a class counts as one decision. "
        "Macro: the mean of the classes.</p>\n"
    )
    calibration = (
        f'<div class="grid wide">\n{figure(images["calibration"], "accuracy over confidence")}\n<p>A confidence of '
        "80 % is worth believing if 80 % of such predictions are right: points on the dotted line. Above it the "
        f"network is too modest, below it too sure. Mean confidence {predictions.confidences.mean():.1%}, accuracy "
        f"{accuracy:.1%}; expected calibration error {metrics.overall['calibration_error']:.3f}.</p></div>\n"
    )
    return [
        Section("classes", "Classes", _per_class_table(classes, metrics)),
        Section("confusion", "Confusion matrix", confusion),
        Section("curves", "ROC and PR", curves),
        Section("calibration", "Calibration", calibration),
    ]


def _plots(predictions: Predictions, metrics: Metrics, stand_ins: dict[str, str]) -> dict[str, Figure]:
    """The plots by name; stand_ins replace class names without a font."""
    classes = [stand_ins.get(name, name) for name in predictions.classes]

    def renamed(curves: dict) -> dict:
        return {stand_ins.get(name, name): curve for name, curve in curves.items()}

    metrics = dataclasses.replace(
        metrics, **{name: renamed(getattr(metrics, name)) for name in ("roc", "pr", "auc", "ap")}
    )
    return {
        "confusion_matrix": confusion_figure(metrics.confusion, classes, normalised=False),
        "confusion_matrix_normalised": confusion_figure(metrics.confusion, classes, normalised=True),
        "roc": roc_figure(metrics),
        "precision_recall": pr_figure(metrics),
        "calibration": calibration_figure(predictions, metrics.overall["calibration_error"]),
    }


def _photos(
    predictions: Predictions, locate: Callable[[str], Path], network: tuple[nn.Module, int] | None, reason: str
) -> list[Section]:
    attention = gallery.attention(*network, predictions, locate) if network else f"<p>Left out: {reason}.</p>\n"
    return [
        Section("mistakes", "Mistakes", gallery.mistakes(predictions, locate)),
        Section("attention", "Attention", attention),
    ]


def _per_class_table(classes: list[str], metrics: Metrics) -> str:
    rows = []
    for i, name in enumerate(classes):
        values = [metrics.per_class[key][i].item() for key in PER_CLASS_NAMES]
        rows.append((name, *(bar_cell(v, number(v, "")) for v in values), str(int(metrics.support[i]))))
    means = [number(metrics.per_class[key].nanmean().item(), "") for key in PER_CLASS_NAMES]
    rows.append(("mean", *means, str(int(metrics.support.sum()))))
    return table(("class", *PER_CLASS_NAMES.values(), "images"), rows, "Each class against all others.")


def _confused_pairs(classes: list[str], metrics: Metrics) -> str:
    wrong = metrics.confusion.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().sort(descending=True, stable=True)
    rows = []
    for count, place in zip(counts.tolist()[:CONFUSED_PAIRS], places.tolist(), strict=False):
        true, said = divmod(place, len(classes))
        if count:
            rows.append((classes[true], classes[said], f"{count} of {metrics.support[true]}"))
    return table(("true class", "classified as", "images"), rows, "Confused most often", kind="pairs") if rows else ""


def _settings(config: dict) -> str:
    settings = {key: value for key, value in config.items() if key != ENVIRONMENT}
    entries = (settings | config[ENVIRONMENT]).items()
    rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in entries]
    body = table(("setting", "value"), rows, "", kind="pairs")
    return f"<details><summary>All {len(settings)} settings, and the environment of the run</summary>{body}</details>\n"


def _as_json(classes: list[str], metrics: Metrics) -> dict:
    """Every metric by name; null if undefined, such as the recall of a class without images."""
    per_class = {
        name: {key: _or_none(values[i].item()) for key, values in metrics.per_class.items()}
        | {"images": int(metrics.support[i])}
        for i, name in enumerate(classes)
    }
    micro = {"micro_auc": metrics.auc[MICRO], "micro_ap": metrics.ap[MICRO]}
    return {
        "overall": {name: _or_none(value) for name, value in (metrics.overall | micro).items()},
        "per_class": per_class,
        "confusion_matrix": metrics.confusion.tolist(),
    }


def _or_none(value: float) -> float | None:
    return value if value == value else None


def _write_page(path: Path, title: str, subtitle: str, sections: list[Section]) -> None:
    with replacing(path) as temporary:
        text = document(title, subtitle, sections)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # paths may have any bytes
