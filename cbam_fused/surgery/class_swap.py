"""Changes the methods of a module by changing its class to a subclass, and back.

An instance attribute ``module.forward = ...`` would be bound to one object, so replicas of DataParallel would compute
with the original's parameters, and it does not pickle. With a subclass ``isinstance`` still holds, copies and replicas
have the same class, and torch.compile sees an ordinary method.
"""

import functools
from typing import SupportsIndex

from torch import nn


class Substitute(nn.Module):
    """Base of the classes whose methods override those of a module.

    The subclass is created at run time, so no import finds it; it pickles and copies as its two parents.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple:
        return (_new, type(self).__bases__, *super().__reduce_ex__(protocol)[2:])


def substitute(module: nn.Module, methods: type[Substitute]) -> None:
    module.__class__ = _subclass(methods, type(module))  # type: ignore[arg-type]


def restore(module: nn.Module) -> None:
    """Undo substitute()."""
    module.__class__ = type(module).__bases__[1]


# mypy does not know that classes are hashable.
@functools.cache
def _subclass(methods: type[Substitute], original: type[nn.Module]) -> type[nn.Module]:
    return type(original.__name__, (methods, original), {"__module__": original.__module__})


def _new(methods: type[Substitute], original: type[nn.Module]) -> nn.Module:
    cls = _subclass(methods, original)  # type: ignore[arg-type]
    return cls.__new__(cls)
