"""Augmentation of training images with torchvision's transforms."""

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

from ..settings import Settings

POLICIES = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment, "auto": v2.AutoAugment}
GREY = (124, 116, 104)  # ImageNet's mean, about 0 after normalise()


def train_transform(settings: Settings, side: int) -> Callable[[Tensor], Tensor]:
    """From uint8 (3, H, W) to uint8 (3, side, side), with random numbers of the global generator."""
    steps = [v2.RandomResizedCrop(side, scale=(settings.crop_scale, 1.0)), v2.RandomHorizontalFlip()]
    if settings.augment != "none":
        steps.append(POLICIES[settings.augment]())
    if settings.erasing:
        steps.append(v2.RandomErasing(settings.erasing, value=GREY))
    return v2.Compose(steps)


def make_mixing(settings: Settings, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """mixup, CutMix or one of them at random: (images, labels) to (images, probabilities (N, num_classes))."""
    mixes = []
    if settings.mixup:
        mixes.append(v2.MixUp(alpha=settings.mixup, num_classes=num_classes))
    if settings.cutmix:
        mixes.append(v2.CutMix(alpha=settings.cutmix, num_classes=num_classes))
    if len(mixes) == 2:
        return v2.RandomChoice(mixes)
    return mixes[0] if mixes else None
