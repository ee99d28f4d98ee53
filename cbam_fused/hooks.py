"""Where layers and masks must be called, not just used by their parameters.

A CBAM uses the parameters of its layers and calls none of them. That is right only for layers that compute what they
were built to compute. Hooks run only if a layer is called: pruning, the old weight_norm and fully_shard work by them.
Other layers compute something else: those with a forward of their own, of their class (adapters, fake quantization) or
of the instance (offloading, LoRA, tracing), and convolutions whose geometry was changed (a dilated encoder).
"""

from typing import Any

from torch import nn

GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")  # of a convolution
# Of an instance, these take the place of the methods that a call runs.
_CALL = ("forward", "_conv_forward", "_call_impl", "_wrapped_call_impl", "_compiled_call_impl")


def has_hooks(*layers: nn.Module | None) -> bool:
    """Whether any of these layers has hooks."""
    for m in layers:
        if m is not None and (m._forward_pre_hooks or m._forward_hooks or m._backward_pre_hooks or m._backward_hooks):
            return True
    return False


def has_own_call(module: nn.Module) -> bool:
    """Whether this instance has a forward, or another method that a call runs, of its own."""
    if type(module).__call__ is not nn.Module.__call__ or type(module)._call_impl is not nn.Module._call_impl:
        return True
    return any(name in module.__dict__ for name in _CALL)


def must_be_called(*convolutions: nn.Module | None) -> bool:
    """Whether any of these layers is something else than a convolution of stride 1 with zero padding of k // 2."""
    return any(m is not None and not _is_convolution(m) for m in convolutions)


def _is_convolution(m: nn.Module) -> bool:
    cls: Any = type(m)
    if not isinstance(m, nn.Conv2d) or has_hooks(m) or has_own_call(m):
        return False
    if cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward:
        return False
    weight = m._parameters.get("weight")  # a parametrized one has none, and asking for its weight may change it
    kernel_size = m.kernel_size if weight is None else tuple(weight.shape[2:])
    if kernel_size != m.kernel_size or m.padding != tuple(k // 2 for k in kernel_size):
        return False
    return m.stride == m.dilation == (1, 1) and m.groups == 1 and m.padding_mode == "zeros"


def is_own(mask: Any, kind: type[nn.Module], switches: Any) -> bool:
    """Whether the parameters of a mask may be used in the place of a call: it is of this class, as it was built."""
    if mask is None:
        return True
    plain = type(mask) is kind and mask.switches == switches and not has_own_call(mask)
    return plain and not has_hooks(mask) and not mask.calls_layers()
