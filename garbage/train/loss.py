"""The loss in training."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Inversely proportional to the number of images of a class, with mean 1 over the images."""
    counts = labels.bincount(minlength=num_classes)
    return len(labels) / (num_classes * counts.to(torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, weight: Tensor | None) -> Tensor:
    """The mean cross entropy of N images, weighted by class, with label smoothing.

    The weight is that of the image's class before smoothing, and the sum is divided by N. torch's CrossEntropyLoss
    weights the smoothed part of a label by each other class, which favours rare classes. It also divides by the sum of
    the batch's weights, so splitting a batch over processes would change the result.

    Args:
        logits: (N, K).
        targets: int64 (N,), classes; or (N, K), probabilities, as from mixup.
        smoothing: the fraction of a label shared by all classes.
        weight: (K,), with mean 1 over the images; None: equal weights.
    """
    if weight is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    if not targets.is_floating_point():
        targets = F.one_hot(targets, len(weight))
    targets = targets * weight
    smoothed = targets * (1 - smoothing) + targets.sum(1, keepdim=True) * smoothing / len(weight)
    return F.cross_entropy(logits, smoothed)
