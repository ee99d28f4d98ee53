"""Predictions for the validation images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import distributed
from ..data.folders import normalise


@torch.inference_mode()
def predict_batches(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], amp: torch.dtype | None = None
) -> Tensor:
    """Logits (N, classes), float32 on the CPU, in eval mode.

    Args:
        batches: uint8 images (B, 3, H, W), and labels.
        amp: the dtype of automatic mixed precision.
    """
    device = next(model.parameters()).device
    model.eval()
    logits = []
    for images, _ in batches:
        with torch.autocast(device.type, amp, enabled=amp is not None):
            logits.append(model(normalise(images.to(device, non_blocking=True))).float())
    return torch.cat(logits).cpu() if logits else torch.empty(0)


def whole(share: Tensor) -> Tensor | None:
    """The rows of all processes in the order of the images, in the first process; None in the others."""
    shares = distributed.gathered(share)
    if shares is None:
        return None
    count, size = sum(map(len, shares)), len(shares)
    rows = torch.empty(count, *shares[0].shape[1:])
    for rank, part in enumerate(shares):
        if len(part):
            rows[rank::size] = part
    return rows


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()
