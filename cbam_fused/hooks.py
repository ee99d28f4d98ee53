"""Hooks of the layers, which run only if a layer is called: pruning, the old weight_norm and fully_shard work by them.

A CBAM uses the parameters of its layers and calls none of them, but where there are hooks, or where a layer computes
something else than a convolution: an adapter, fake quantization.
"""

from typing import Any

from torch import nn


def has_hooks(*layers: nn.Module | None) -> bool:
    """Whether any of these layers has hooks."""
    for m in layers:
        if m is not None and (m._forward_pre_hooks or m._forward_hooks or m._backward_pre_hooks or m._backward_hooks):
            return True
    return False


def must_be_called(*convolutions: nn.Module | None) -> bool:
    """Whether any of these layers has hooks or a forward of its own."""
    own = (m is not None and type(m).forward is not nn.Conv2d.forward for m in convolutions)
    return has_hooks(*convolutions) or any(own)


def masks_are_called(ca: Any, sa: Any) -> bool:
    """Whether hooks of the two mask modules, or of their layers, want the masks to be called; either may be None."""
    return any(m is not None and (has_hooks(m) or m.calls_layers()) for m in (ca, sa))
