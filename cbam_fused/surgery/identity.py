"""Initial values that make a CBAM almost the identity."""

from typing import Any

import torch
from torch import Tensor, nn

from ..routing import without_demand
from .attention import gates_of
from .dry_run import evaluating

# A gate of sigmoid(4) = 0.982 is almost 1 and still learns: its slope is 0.018, compared with 0.25 at 0.
LOGIT = 4.0
TOLERANCE = 0.05


@torch.no_grad()
def identity_(module: nn.Module, channels: int) -> None:
    """Set the last weight of each gate to zero and its bias so that the gate is sigmoid(4): y = 0.964 x for any x.

    If the module adds x itself, the gates are sigmoid(-4) instead, and y = 1.0003 x. Only existing parameters are set,
    so the module's formula does not change. The result is then measured.

    Raises:
        ValueError: the module's parameters do not allow it: without a bias a gate with zero weights is 0.5.
    """
    spatial = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 1 and m.in_channels <= 2]
    conv = spatial[-1] if spatial else None
    norm = next((m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.num_features == 1), None)
    layers = [m for m in module.modules() if m is not conv and _outputs(m) == channels]
    # Before a BatchNorm the convolution keeps its weights: with zero weights the variance would be 0, and BatchNorm
    # would return gradients a few hundred times too large.
    last_of_spatial = conv if norm is None else norm
    last: list[Any] = [m for m in (layers[-1] if layers else None, last_of_spatial) if m is not None]
    weight = next(module.parameters())
    noise = torch.randn(2, channels, 7, 7, generator=torch.Generator().manual_seed(0), device="cpu")
    x = noise.to(weight.device, weight.dtype)
    with evaluating(module), without_demand():
        for logit in (LOGIT, -LOGIT):
            for layer in last:
                layer.weight.zero_()
                if layer.bias is not None:
                    pools = 1 if layer is last_of_spatial else _pools(module, layer, x)
                    layer.bias.fill_(logit / pools)
            if _is_identity(module, x):
                return
    raise ValueError(
        f"init='identity' needs a bias in every gate, and {type(module).__name__} has none: without a bias the gates "
        "are sigmoid(0) = 0.5 for zero weights, so y = 0.25 x; use a variant with biases, such as "
        "factory=functools.partial(cbam_fused.CBAM, variant='official')"
    )


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _pools(module: nn.Module, layer: Any, x: Tensor) -> int:
    """How many times the layer's bias counts in the channel gate, once per pool: measured with a bias of 1."""
    layer.bias.fill_(1)
    channel = gates_of(module, x)[0]
    assert channel is not None  # the layer is its last
    return max(1, round(torch.logit(channel.double().mean(), eps=1e-6).item()))


def _is_identity(module: nn.Module, x: Tensor) -> bool:
    """Whether y is x within TOLERANCE, and no gate is exactly 0 or 1, where it cannot learn."""
    open_to_gradients = all(g is None or bool(((g > 0) & (g < 1)).all()) for g in gates_of(module, x))
    return open_to_gradients and bool(((module(x) - x).abs() <= TOLERANCE * x.abs()).all())
