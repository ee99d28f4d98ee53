"""Metrics of predictions, computed by torchmetrics.

A class without images has no precision, recall, F1, AUC or average precision; if all images are of one class, it has no
specificity or AUC. These are NaN, and macro averages skip them. An average over no class is NaN.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional import classification as tm

from .predictions import Predictions

BINS = 15  # bins of the calibration error and its diagram, as in Guo et al., 2017
PER_CLASS = ("precision", "recall", "specificity", "f1", "auc", "ap")
Curve = tuple[Tensor, Tensor]  # x, y
MICRO, MACRO = "micro average", "macro average"


@dataclass(frozen=True)
class Metrics:
    """All metrics of a set of predictions for K classes.

    Attributes:
        overall: name to value.
        per_class: name (PER_CLASS) to float32 (K,).
        support: int64 (K,), images per class.
        confusion: int64 (K, K), true class by row, predicted class by column.
        roc: name of a class with an AUC, MICRO or MACRO, to (false positive rates, true positive rates); MACRO is
            absent if no class has an AUC.
        pr: the same for average precision, to (recalls, precisions), recall decreasing.
        auc, ap: the same names to the areas under the curves, always with MACRO.
    """

    overall: dict[str, float]
    per_class: dict[str, Tensor]
    support: Tensor
    confusion: Tensor
    roc: dict[str, Curve]
    pr: dict[str, Curve]
    auc: dict[str, float]
    ap: dict[str, float]


def compute_metrics(predictions: Predictions) -> Metrics:
    """All metrics of the report, from the predictions."""
    p, labels, classes = predictions.probabilities, predictions.labels, predictions.classes
    num_classes = len(classes)
    support = torch.bincount(labels, minlength=num_classes)
    present, opposed = support > 0, support < len(labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*samples (found )?in target.*|.*NaN.*")  # classes with none or all
        of_class = {"num_classes": num_classes, "average": "none"}
        per_class = {
            "precision": tm.multiclass_precision(p, labels, **of_class),
            "recall": tm.multiclass_recall(p, labels, **of_class),
            "specificity": tm.multiclass_specificity(p, labels, **of_class),
            "f1": tm.multiclass_f1_score(p, labels, **of_class),
            "auc": tm.multiclass_auroc(p, labels, **of_class),
            "ap": tm.multiclass_average_precision(p, labels, **of_class),
        }
        fpr, tpr, _ = tm.multiclass_roc(p, labels, num_classes)
        precision, recall, _ = tm.multiclass_precision_recall_curve(p, labels, num_classes)
    for name in ("precision", "recall", "f1", "auc", "ap"):
        per_class[name] = per_class[name].where(present, torch.nan)
    for name in ("specificity", "auc"):
        per_class[name] = per_class[name].where(opposed, torch.nan)

    of_roc, of_pr = ((~per_class[name].isnan()).nonzero().flatten().tolist() for name in ("auc", "ap"))
    roc = {classes[i]: (fpr[i], tpr[i]) for i in of_roc}
    pr = {classes[i]: (recall[i], precision[i]) for i in of_pr}
    auc = {classes[i]: per_class["auc"][i].item() for i in of_roc}
    ap = {classes[i]: per_class["ap"][i].item() for i in of_pr}
    # Micro: every pair of an image and a class is a binary decision.
    pairs, answers = p.flatten(), torch.nn.functional.one_hot(labels, num_classes).flatten()
    micro_fpr, micro_tpr, _ = tm.binary_roc(pairs, answers)
    micro_precision, micro_recall, _ = tm.binary_precision_recall_curve(pairs, answers)
    roc |= {MICRO: (micro_fpr, micro_tpr)} | ({MACRO: _macro_roc(list(roc.values()))} if roc else {})
    pr |= {MICRO: (micro_recall, micro_precision), MACRO: _macro_pr(list(pr.values()))}
    auc |= {MICRO: tm.binary_auroc(pairs, answers).item(), MACRO: per_class["auc"].nanmean().item()}
    ap |= {MICRO: tm.binary_average_precision(pairs, answers).item(), MACRO: per_class["ap"].nanmean().item()}

    count, confidence, accuracy = calibration_bins(predictions)
    top = {"average": "micro", "top_k": min(3, num_classes)}
    overall = {
        "accuracy": tm.multiclass_accuracy(p, labels, num_classes, average="micro").item(),
        "top_3_accuracy": tm.multiclass_accuracy(p, labels, num_classes, **top).item(),
        "macro_recall": per_class["recall"].nanmean().item(),
        "macro_f1": per_class["f1"].nanmean().item(),
        "macro_auc": auc[MACRO],
        "macro_ap": ap[MACRO],
        "negative_log_likelihood": -p.gather(1, labels[:, None]).clamp(min=1e-12).log().mean().item(),
        "calibration_error": ((count * (confidence - accuracy).abs()).nansum() / count.sum()).item(),
    }
    confusion = tm.multiclass_confusion_matrix(p, labels, num_classes)
    return Metrics(overall, per_class, support, confusion, roc, pr, auc, ap)


def calibration_bins(predictions: Predictions) -> tuple[Tensor, Tensor, Tensor]:
    """Images, mean confidence and accuracy in each of BINS equal intervals of confidence; NaN in empty ones."""
    # Intervals (a, b], as in Guo et al.; torchmetrics has [a, b), with one more for a confidence of exactly 1.
    bins = (predictions.confidences * BINS).ceil().long().clamp(1, BINS) - 1
    count = torch.bincount(bins, minlength=BINS)
    confidence = torch.bincount(bins, predictions.confidences.double(), BINS) / count
    right = (predictions.predicted == predictions.labels).double()
    return count, confidence, torch.bincount(bins, right, BINS) / count


def _macro_roc(curves: list[Curve]) -> Curve:
    """The mean true positive rate of the classes at every false positive rate; torchmetrics' mean smooths the steps."""
    grid = torch.linspace(0, 1, 1001)
    rates = []
    for fpr, tpr in curves:  # linear between its points, which are far apart if many images have the same probability
        i = torch.searchsorted(fpr.contiguous(), grid, right=True) - 1
        j = (i + 1).clamp(max=len(fpr) - 1)
        part = ((grid - fpr[i]) / (fpr[j] - fpr[i]).clamp(min=1e-9)).clamp(0, 1)
        rates.append(tpr[i] + part * (tpr[j] - tpr[i]))
    return torch.cat([torch.zeros(1), grid]), torch.cat([torch.zeros(1), torch.stack(rates).mean(0)])


def _macro_pr(curves: list[Curve]) -> Curve:
    """The mean precision of the classes at every recall, stepwise, so its area is the mean average precision.

    torchmetrics interpolates recall over precision, which is not monotonic.
    """
    grid = torch.linspace(1, 0, 1001)
    steps = []
    for recall, precision in curves:
        rising = recall.flip(0).contiguous()
        steps.append(precision.flip(0)[torch.searchsorted(rising, grid.clamp(min=1e-6))])
    return grid, torch.stack(steps).mean(0)
