"""CBAM in a residual block of ResNet, before the addition, with addition and ReLU in the same pass."""

from typing import Any

import torch
from torch import Tensor, nn

from .class_swap import Substitute
from .dry_run import evaluating
from .selection import CHILD

REQUIRED = {"conv1", "bn1", "relu", "conv2", "bn2"}
OPTIONAL = {"conv3", "bn3", "downsample", CHILD}


class ResidualBlock(Substitute):
    """BasicBlock or Bottleneck of torchvision, and those of the same children, as relu(cbam(branch) + shortcut).

    A forward hook cannot do this: it can put CBAM behind the last BatchNorm, but not leave out the addition and the
    ReLU of the block's own forward, which then pass over the feature map again.
    """

    cbam: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        z, identity = _branch_and_shortcut(self, x)
        return self.cbam(z, residual=identity, relu=True)


def _branch_and_shortcut(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    if hasattr(block, "conv3"):
        z = block.bn3(block.conv3(block.relu(z)))
    return z, x if block.downsample is None else block.downsample(x)


def is_residual_block(module: nn.Module) -> bool:
    """Whether the module has the children of a BasicBlock or Bottleneck and nothing else but perhaps a CBAM."""
    children = {n for n, _ in module.named_children()}
    return (
        REQUIRED <= children <= REQUIRED | OPTIONAL
        and ("conv3" in children) == ("bn3" in children)
        and hasattr(module, "downsample")
        and not any(True for _ in module.parameters(recurse=False))
    )


def computes_residual(block: Any) -> bool:
    """Whether the block returns relu(branch + shortcut), on noise: pre-activation blocks have the same children."""
    weight = block.conv1.weight
    noise = torch.randn(1, block.conv1.in_channels, 8, 8, generator=torch.Generator().manual_seed(0), device="cpu")
    x = noise.to(weight.device, weight.dtype)
    with evaluating(block):
        z, identity = _branch_and_shortcut(block, x)
        return torch.allclose(block(x), torch.relu(z + identity), equal_nan=True)
