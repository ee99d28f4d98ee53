"""CBAM in plain PyTorch: the ground truth of every test and the route for what the kernels do not serve.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, in the form most code
bases use: two bias-free 1x1 convolutions shared by both pools, and a k x k convolution over
[mean, max] without BatchNorm. Optional biases b1, b2, bs cover the implementations that have them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def channel_gate(x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor | None = None, b2: Tensor | None = None) -> Tensor:
    """g = sigmoid(mlp(mean over H, W of x) + mlp(max over H, W of x)), with mlp(v) = W2 relu(W1 v + b1) + b2.

    b2 counts once per pool, hence twice. Parameters are cast to x's dtype.

    Args:
        x: (N, C, H, W).
        w1, w2: (R, C[, 1, 1]) and (C, R[, 1, 1]).
        b1, b2: (R,) and (C,), or None.

    Returns:
        (N, C, 1, 1) in x's dtype, every value in [0, 1].
    """
    w1, w2, b1, b2 = (None if p is None else p.to(x.dtype) for p in (w1, w2, b1, b2))
    w1, w2 = w1.reshape(*w1.shape[:2], 1, 1), w2.reshape(*w2.shape[:2], 1, 1)

    def mlp(pooled: Tensor) -> Tensor:
        return F.conv2d(F.relu(F.conv2d(pooled, w1, b1)), w2, b2)

    return torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1)))


def spatial_gate(x: Tensor, ws: Tensor, bs: Tensor | None = None, *, norm: nn.BatchNorm2d | None = None) -> Tensor:
    """s = sigmoid(norm(conv_k([mean over C of x; max over C of x]) + bs)), zero padding k // 2.

    Args:
        x: (N, C, H, W).
        ws: (1, 2, k, k), k odd; input channel 0 is the mean, 1 the maximum.
        bs: (1,) or None.
        norm: BatchNorm of one channel, run in the mode that it is in, or None.

    Returns:
        (N, 1, H, W) in x's dtype, every value in [0, 1].
    """
    ws, bs = (None if p is None else p.to(x.dtype) for p in (ws, bs))
    maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
    logits = F.conv2d(maps, ws, bs, padding=ws.shape[-1] // 2)
    return torch.sigmoid(logits if norm is None else norm(logits))


def cbam(
    x: Tensor,
    w1: Tensor | None,
    w2: Tensor | None,
    ws: Tensor | None,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    bs: Tensor | None = None,
    *,
    norm: nn.BatchNorm2d | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Same arguments and result as :func:`cbam_fused.functional.cbam`, computed by plain PyTorch operators."""
    y = x
    if w1 is not None:
        y = y * channel_gate(y, w1, w2, b1, b2)
    if ws is not None:
        y = y * spatial_gate(y, ws, bs, norm=norm)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


class ChannelAttention(nn.Module):
    """The channel mask of CBAM, multiplied in by the caller: ``x = ca(x) * x``.

    Args:
        channels: C of the feature map.
        reduction: the hidden layer has max(1, channels // reduction) units.

    Shape: (N, C, H, W) -> (N, C, 1, 1). State: ``fc1.weight (R, C, 1, 1)``, ``fc2.weight (C, R, 1, 1)``.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        for name, value in (("channels", channels), ("reduction", reduction)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return channel_gate(x, self.fc1.weight, self.fc2.weight)


class SpatialAttention(nn.Module):
    """The spatial mask of CBAM, multiplied in by the caller: ``x = sa(x) * x``.

    Args:
        kernel_size: odd size of the convolution over the [mean, max] maps.

    Shape: (N, C, H, W) -> (N, 1, H, W). State: ``conv1.weight (1, 2, k, k)``.
    """

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be an odd integer of at least 1, got {kernel_size!r}")
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return spatial_gate(x, self.conv1.weight)


class CBAM(nn.Module):
    """Plain PyTorch CBAM with the tutorial layout; :class:`cbam_fused.CBAM` is the same module, fused.

    Args:
        channels: C of the feature map.
        reduction: the hidden layer has max(1, channels // reduction) units.
        kernel_size: odd size of the spatial convolution.

    Shape: (N, C, H, W) -> (N, C, H, W).
    State: ``ca.fc1.weight (R, C, 1, 1)``, ``ca.fc2.weight (C, R, 1, 1)``, ``sa.conv1.weight (1, 2, k, k)``.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7):
        super().__init__()
        self.ca = ChannelAttention(channels, reduction)
        self.sa = SpatialAttention(kernel_size)

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """relu(CBAM(x) + residual), each part only where asked for."""
        return cbam(x, *self.weights(), residual=residual, relu=relu)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.ca.fc1.weight, self.ca.fc2.weight, self.sa.conv1.weight
