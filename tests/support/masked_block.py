"""A block that calls two masks."""

from public import ChannelMask, SpatialMask
from torchvision.models.resnet import BasicBlock


class MaskedBlock(BasicBlock):
    """As in the common resnet_cbam.py: the two masks belong to the block, which is their caller."""

    def __init__(self, inplanes, planes, *args, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        self.ca, self.sa = ChannelMask(planes, 4), SpatialMask()

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out = self.ca(out) * out
        out = self.sa(out) * out
        out += identity
        return self.relu(out)
