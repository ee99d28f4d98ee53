"""Small networks of every kind for the tests of surgery, and shared functions."""

import re

import torch
import torchvision
from torch import Tensor, nn

from cbam_fused import reference


class DoubleConv(nn.Sequential):
    def __init__(self, cin: int, cout: int):
        super().__init__(
            nn.Conv2d(cin, cout, 3, padding=1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(inplace=True),
            nn.Conv2d(cout, cout, 3, padding=1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Two steps down and up, plain convolution blocks, skips by concatenation."""

    def __init__(self, num_classes: int = 5):
        super().__init__()
        self.inc, self.down1, self.down2 = DoubleConv(3, 8), DoubleConv(8, 16), DoubleConv(16, 32)
        self.up1, self.up2 = DoubleConv(48, 16), DoubleConv(24, 8)
        self.pool, self.upsample = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.outc = nn.Conv2d(8, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip0 = self.inc(x)
        skip1 = self.down1(self.pool(skip0))
        x = self.down2(self.pool(skip1))
        x = self.up1(torch.cat([self.upsample(x), skip1], 1))
        x = self.up2(torch.cat([self.upsample(x), skip0], 1))
        return self.outc(x)


UNET_BLOCKS = re.compile(r"inc|down\d|up\d")


def build(arch: str) -> nn.Module:
    """A network with five outputs, in training mode, the same for every call."""
    torch.manual_seed(0)
    if arch == "unet":
        return UNet()
    model = torchvision.models.get_model(arch, num_classes=5)
    if arch.startswith("vgg"):
        model.classifier = nn.Linear(512 * 7 * 7, 5)  # instead of 120 million parameters
    return model


def small_resnet(block: str = "BasicBlock") -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.ResNet(getattr(torchvision.models.resnet, block), [1, 1, 1, 1], num_classes=5)


def small_swin() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5)


def image(batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


class BiasedCBAM(reference.CBAM):
    """With a bias in every layer; optionally with one pool, a BatchNorm, or x added at the end."""

    def __init__(self, channels, reduction=16, kernel_size=7, *, pools=("avg", "max"), norm=False, add=False):
        super().__init__(channels, reduction, kernel_size)
        for layer in (self.ca.fc1, self.ca.fc2, *(() if norm else (self.sa.conv1,))):
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
        self.bn = nn.BatchNorm2d(1) if norm else None
        self.pools, self.add = pools, add

    def gates(self, x):
        pooled = [{"avg": x.mean((2, 3), keepdim=True), "max": x.amax((2, 3), keepdim=True)}[p] for p in self.pools]
        channel = torch.sigmoid(sum(self.ca.fc2(torch.relu(self.ca.fc1(p))) for p in pooled))
        conv = self.sa.conv1
        return channel, reference.spatial_gate(x * channel, conv.weight, conv.bias, norm=self.bn)

    def forward(self, x, *, residual=None, relu=False):
        channel, spatial = self.gates(x)
        y = x * channel * spatial + (x if self.add else 0)
        y = y if residual is None else y + residual
        return torch.relu(y) if relu else y
