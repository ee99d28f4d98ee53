"""Changing what one module does by changing its class to a subclass, and back.

Why not an instance attribute ``module.forward = ...``: it is bound to that one object, so replicas of DataParallel
would compute with the original's parameters, and it does not pickle. A subclass needs neither: ``isinstance``
still holds, copies and replicas are of the same class, and torch.compile sees an ordinary method.
"""

import functools
from typing import SupportsIndex

from torch import nn


class Substitute(nn.Module):
    """Base of the classes whose methods take the place of a module's own.

    The subclass is made at run time, so that no import could find it: it pickles and copies as its two parents.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple:
        return (_new, type(self).__bases__, *super().__reduce_ex__(protocol)[2:])


def substitute(module: nn.Module, methods: type[Substitute]) -> None:
    module.__class__ = _subclass(methods, type(module))  # type: ignore[arg-type]


def restore(module: nn.Module) -> None:
    """Undo substitute()."""
    module.__class__ = type(module).__bases__[1]


# Classes are hashable, which mypy does not see.
@functools.cache
def _subclass(methods: type[Substitute], original: type[nn.Module]) -> type[nn.Module]:
    return type(original.__name__, (methods, original), {"__module__": original.__module__})


def _new(methods: type[Substitute], original: type[nn.Module]) -> nn.Module:
    cls = _subclass(methods, original)  # type: ignore[arg-type]
    return cls.__new__(cls)
