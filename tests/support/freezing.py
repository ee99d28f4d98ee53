"""A network with CBAM and its trained parameters."""

import re

from backbones import image, small_resnet
from torch import nn

from cbam_fused.surgery import insert_cbam


def resnet_with_cbam(**options) -> nn.Module:
    model = small_resnet()
    insert_cbam(model, where="each_layer", example_input=image(1), **options)
    return model


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def names(model: nn.Module, pattern: str) -> set[str]:
    return {n for n, _ in model.named_parameters() if re.match(pattern, n)}
