"""The loss in training."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Inverse to the number of images of a class, with mean 1 over the images."""
    counts = labels.bincount(minlength=num_classes)
    return len(labels) / (num_classes * counts.to(torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, weight: Tensor | None) -> Tensor:
    """The mean cross entropy of N images, each counted with the weight of its class, with label smoothing.

    Weights go with what an image shows, before smoothing, and the sum is divided by N. torch's CrossEntropyLoss
    gives the smoothed part of a label the weight of each other class: a common class could then be learned as a rare
    one. It also divides by the weights of the batch, so that a batch split over processes would be another one.

    Args:
        logits: (N, K).
        targets: int64 (N,), classes; or (N, K), probabilities, as mixup makes them.
        smoothing: the part of a label that all classes share.
        weight: (K,), with mean 1 over the images; None: all count the same.
    """
    if weight is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    if not targets.is_floating_point():
        targets = F.one_hot(targets, len(weight))
    targets = targets * weight
    smoothed = targets * (1 - smoothing) + targets.sum(1, keepdim=True) * smoothing / len(weight)
    return F.cross_entropy(logits, smoothed)
