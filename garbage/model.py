"""The classifier: a torchvision ResNet with CBAM."""

import torch
import torchvision
from torch import nn

import cbam_fused

from . import InputError

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
PLACEMENTS = ("each_layer", "in_block", "stem_last", "last", "none")
BACKENDS = {"fused": cbam_fused.CBAM, "reference": cbam_fused.reference.CBAM}


def pretrained_weights(arch: str) -> dict[str, torch.Tensor]:
    """torchvision's ImageNet weights, downloaded unless they are cached.

    Raises:
        InputError: they are neither cached nor to be downloaded.
    """
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a damaged file
        raise InputError(
            f"the pretrained weights of {arch} cannot be downloaded ({error}); put {weights.url} "
            f"into {torch.hub.get_dir()}/checkpoints, or train without --pretrained"
        ) from error


def build_model(
    arch: str, num_classes: int, cbam: str = "each_layer", backend: str = "fused", pretrained: bool = False
) -> nn.Module:
    """A network (N, 3, H, W) -> logits (N, num_classes), H and W at least 32, in channels_last layout.

    Args:
        arch: one of ARCHITECTURES.
        cbam: one of PLACEMENTS: a preset of insert_cbam, or none.
        backend: one of BACKENDS; both give the same parameters for one state of the random generator.
        pretrained: start from torchvision's ImageNet weights, loaded before CBAM is inserted.

    Raises:
        InputError: as pretrained_weights.
    """
    model = torchvision.models.get_model(arch, weights=None)
    if pretrained:
        model.load_state_dict(pretrained_weights(arch))
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    if cbam != "none":
        cbam_fused.insert_cbam(model, where=cbam, factory=BACKENDS[backend])
    return model.to(memory_format=torch.channels_last)
