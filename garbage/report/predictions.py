"""Predictions for labelled images: those of the best epoch of a run, and those of evaluate."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import InputError


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for N labelled images; files, labels and probabilities have the same order.

    Attributes:
        epoch: the network's epoch.
        classes: K names.
        files: paths, relative to the data folder or absolute.
        labels: int64 (N,), the true classes.
        probabilities: float32 (N, K); each row sums to 1.
    """

    epoch: int
    classes: list[str]
    files: list[str]
    labels: Tensor
    probabilities: Tensor

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image, int64 (N,)."""
        return self.probabilities.argmax(1)

    @property
    def confidences(self) -> Tensor:
        """The probability of the most probable class, float32 (N,)."""
        return self.probabilities.amax(1)

    def mistakes(self, count: int) -> list[int]:
        """Indices of the wrong predictions, the most confident first, at most count of them."""
        order = self.confidences.argsort(descending=True, stable=True)
        return order[(self.predicted != self.labels)[order]][:count].tolist()


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write predictions as JSON."""
    content = {
        "epoch": predictions.epoch,
        "classes": predictions.classes,
        "files": predictions.files,
        "labels": predictions.labels.tolist(),
        "probabilities": predictions.probabilities.tolist(),
    }
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def read_predictions(path: Path) -> Predictions:
    """Read what write_predictions wrote.

    Raises:
        InputError: there is no such file, or its contents are inconsistent; the message gives the reason.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes, files = content["classes"], content["files"]
        for name in ("classes", "files"):
            if not (isinstance(content[name], list) and all(isinstance(text, str) for text in content[name])):
                raise TypeError(f"{name} must be a list of texts")
        labels = torch.tensor(content["labels"], dtype=torch.int64)
        probabilities = torch.tensor(content["probabilities"], dtype=torch.float32)
        predictions = Predictions(content["epoch"], classes, files, labels, probabilities)
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: no epoch of the run has finished") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not hold predictions: {type(error).__name__}: {error}") from error
    wrong = _inconsistency(predictions)
    if wrong:
        raise InputError(f"{path} does not hold predictions: {wrong}")
    # Rounding may exceed 1 slightly, and torchmetrics treats numbers outside [0, 1] as logits.
    probabilities.clamp_(0, 1)
    return predictions


def _inconsistency(predictions: Predictions) -> str:
    count, num_classes = len(predictions.files), len(predictions.classes)
    labels, probabilities = predictions.labels, predictions.probabilities
    if not count:
        return "it has no images"
    if labels.shape != (count,) or probabilities.shape != (count, num_classes):
        return (
            f"{count} files and {num_classes} classes, but labels of shape {tuple(labels.shape)} "
            f"and probabilities of shape {tuple(probabilities.shape)}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        return f"labels from {labels.min()} to {labels.max()} for {num_classes} classes"
    if not torch.allclose(probabilities.sum(1), torch.ones(()), atol=1e-3) or probabilities.min() < -1e-3:
        return "rows of probabilities that do not add up to 1"
    return ""
