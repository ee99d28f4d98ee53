"""Decides whether layers and masks must be called, or whether their parameters are enough.

A CBAM uses the parameters of its layers without calling them. This is correct only for unchanged layers. Hooks run only
if a layer is called: pruning, the old weight_norm and fully_shard use them. Other layers compute something else: those
with their own forward, in their class (adapters, fake quantization) or on the instance (offloading, LoRA, tracing), and
convolutions with a changed geometry (a dilated encoder).
"""

from typing import Any

from torch import nn

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")  # of a convolution
# Instance attributes of these names override the methods that a call runs.
_CALL = ("forward", "_conv_forward", "_call_impl", "_wrapped_call_impl", "_compiled_call_impl")


def has_hooks(*layers: nn.Module | None) -> bool:
    """Whether any of these layers has hooks."""
    for m in layers:
        if m is not None and (m._forward_pre_hooks or m._forward_hooks or m._backward_pre_hooks or m._backward_hooks):
            return True
    return False


def has_own_call(module: nn.Module) -> bool:
    """Whether this instance overrides forward or another method that a call runs."""
    if type(module).__call__ is not nn.Module.__call__ or type(module)._call_impl is not nn.Module._call_impl:
        return True
    return any(name in module.__dict__ for name in _CALL)


def must_be_called(*convolutions: nn.Module | None) -> bool:
    """Whether any of these layers is not a plain convolution of stride 1 with zero padding of k // 2."""
    return any(m is not None and not _is_convolution(m) for m in convolutions)


def _is_convolution(m: nn.Module) -> bool:
    cls: Any = type(m)
    if not isinstance(m, nn.Conv2d) or has_hooks(m) or has_own_call(m):
        return False
    if cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward:
        return False
    weight = m._parameters.get("weight")  # a parametrized layer has none, and reading its weight may change it
    kernel_size = m.kernel_size if weight is None else tuple(weight.shape[2:])
    if kernel_size != m.kernel_size or m.padding != tuple(k // 2 for k in kernel_size):
        return False
    return m.stride == m.dilation == (1, 1) and m.groups == 1 and m.padding_mode == "zeros"


def is_own(mask: Any, kind: type[nn.Module], switches: Any) -> bool:
    """Whether the parameters of a mask may replace a call: the mask is of this class and unchanged."""
    if mask is None:
        return True
    plain = type(mask) is kind and mask.switches == switches and not has_own_call(mask)
    return plain and not has_hooks(mask) and not mask.calls_layers()
