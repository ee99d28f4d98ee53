"""Maps of a network as overlays on its input image."""

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cbam_fused import reference

MAPS = 8  # CBAMs shown of a network with more


def has_cbam(model: nn.Module) -> bool:
    return any(isinstance(module, reference.CBAM) for module in model.modules())


def as_picture(image: Tensor) -> Image.Image:
    """An image uint8 (3, H, W) for Pillow."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def overlay(image: Tensor, heat: Tensor) -> Image.Image:
    """An image with a heat map as overlay: blue at the minimum, red at the maximum.

    Args:
        image: uint8 (3, H, W).
        heat: real values (h, w), enlarged bilinearly; the colours span their range.
    """
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / (high - low).clamp(min=torch.finfo(heat.dtype).tiny)
    scaled = F.interpolate(scaled[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    colours = matplotlib.colormaps["turbo"](scaled.numpy())[..., :3] * 255
    return Image.fromarray((0.5 * image.permute(1, 2, 0).numpy() + 0.5 * colours).round().astype(np.uint8))


def spread(names: list[str], count: int) -> list[str]:
    """At most count of the names, evenly spread, including the last."""
    if len(names) <= count:
        return names
    return [names[round((i + 1) * len(names) / count) - 1] for i in range(count)]
