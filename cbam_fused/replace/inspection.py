"""Inspects the bytecode of a forward for effects that neither torch.fx nor a comparison of numbers detects.

Code not known to be harmless is a reason to leave a module alone: its result must depend only on its input, its layers
and its constant attributes, and it must have no other effect.
"""

import dis
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from ..hooks import has_own_call

_BUILTINS = frozenset(
    (
        *(
            "abs",
            "all",
            "any",
            "bool",
            "dict",
            "enumerate",
            "float",
            "int",
            "len",
            "list",
            "map",
            "max",
            "min",
            "range",
        ),
        *("reversed", "round", "slice", "sorted", "sum", "super", "tuple", "zip"),
        *("AssertionError", "Exception", "NotImplementedError", "RuntimeError", "TypeError", "ValueError"),
    )
)
_LIST_METHODS = frozenset(("append", "extend"))
_OF_MODULES = frozenset(("forward", "get_submodule", "training"))
_OF_TENSORS_TOO = frozenset(("to", "float", "double", "half", "bfloat16", "type"))
_STATEMENTS = {
    "STORE_ATTR": "sets an attribute",
    "DELETE_ATTR": "deletes an attribute",
    "STORE_GLOBAL": "sets a global",
    "DELETE_GLOBAL": "deletes a global",
    "STORE_SUBSCR": "sets an item",
    "STORE_SLICE": "sets an item",
    "DELETE_SUBSCR": "deletes an item",
    "IMPORT_NAME": "imports",
    "SETUP_FINALLY": "has a try",
    "PUSH_EXC_INFO": "has a try or a with",
    "SETUP_WITH": "has a with",
    "BEFORE_WITH": "has a with",
    "GET_AWAITABLE": "awaits",
    "BUILD_SET": "has a set",
    "SET_ADD": "has a set",
    "MATCH_CLASS": "has a match",
}
# A proxy of torch.fx is not the object that it represents, and has another string.
_STATEMENTS_ON_PROXIES = {
    "CONTAINS_OP": "tests membership",
    "FORMAT_VALUE": "formats a string",
    "FORMAT_SIMPLE": "formats a string",
    "FORMAT_WITH_SPEC": "formats a string",
}
_ATTRIBUTES_OF_PROXIES = frozenset("format get grad_fn grad index join names pop _base setdefault update".split())  # noqa: SIM905
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.memory_format, torch.layout)


class Unseen(Exception):
    """Why a forward may have an undetected effect; the text continues "its forward"."""


MISSING = object()


@dataclass
class Reads:
    """The attributes that a forward reads from its module.

    Attributes:
        constants: plain attributes and their values; MISSING if absent.
        children: names of children, parameters and buffers, and whether they are present.
    """

    constants: dict[str, Any] = field(default_factory=dict)
    children: dict[str, bool] = field(default_factory=dict)


def inspect_forward(module: nn.Module, *, by_name: bool = False) -> Reads:
    """The attributes that the forward of a module's class, and all Python code that it calls, read from the module.

    Args:
        by_name: whether ``getattr`` is allowed; its attributes are not in the result.

    Raises:
        Unseen: the code may have an undetected effect.
    """
    if has_own_call(module):
        raise Unseen("is not its class's")
    for name in ("__getattribute__", "__getattr__", "__setattr__"):
        if getattr(type(module), name) is not getattr(nn.Module, name):
            raise Unseen(f"has its own {name}")
    inspection = _Inspection(module, by_name)
    inspection.function(type(module).forward)
    if inspection.adds and (lists := [n for n, v in inspection.reads.constants.items() if isinstance(v, list)]):
        raise Unseen(f"may add to its attribute {lists[0]}")
    return inspection.reads


class _Inspection:
    def __init__(self, module: nn.Module, by_name: bool):
        self.module, self.by_name = module, by_name
        self.reads = Reads()
        self.seen: set[object] = set()
        self.adds = False
        self.statements = _STATEMENTS if by_name else _STATEMENTS | _STATEMENTS_ON_PROXIES
        self.inside = {n for m in module.modules() if m is not module for n in _plain(m)}

    def function(self, f: object) -> None:
        """Raise Unseen if a function may have an undetected effect."""
        if f in self.seen:
            return
        self.seen.add(f)
        if not isinstance(f, types.FunctionType):
            raise Unseen(f"calls {_name(f)}, which is not a Python function")
        for value in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()):
            self.constant(value, f"the default {value!r}")
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            if name != "__class__":
                self.value(cell.cell_contents, f"the variable {name} of an enclosing function")
        self.code(f.__code__, f.__globals__, f.__code__.co_freevars)

    def code(self, code: types.CodeType, variables: dict[str, Any], free: tuple[str, ...]) -> None:
        comprehension = code.co_name in ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")
        if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE) and not comprehension:
            raise Unseen("is or calls a generator")
        for name in self._global_chains(code, variables, free):
            self.attribute(name)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(constant, variables, ())

    def _global_chains(self, code: types.CodeType, variables: dict[str, Any], free: tuple[str, ...]) -> Iterator[str]:
        """Check statements and globals with their attributes (torch.nn.functional.relu); yield other attributes."""
        chain: list[Any] = []  # the object reached by the attributes so far, if they start from a global
        label = ""
        previous: Any = None
        for instruction in dis.get_instructions(code):
            name = str(instruction.argval)
            if chain and instruction.opname in _ATTRIBUTES and isinstance(chain[0], types.ModuleType | type):
                label += f".{name}"
                of_class = isinstance(chain[0], type)
                chain = [inspect.getattr_static(chain[0], name, None) if of_class else getattr(chain[0], name, None)]
                continue
            if chain and instruction.opname not in ("PUSH_NULL", "CACHE", "EXTENDED_ARG"):
                self.value(chain[0], label)
                chain = []
            if text := self.statements.get(instruction.opname):
                raise Unseen(text)
            if instruction.opname == "IS_OP" and previous is not None:
                raise Unseen("compares by identity with an object other than None")
            if isinstance(instruction.argval, frozenset):
                raise Unseen("has a set")
            previous = instruction.argval
            if instruction.opname == "STORE_DEREF" and name in free:
                raise Unseen(f"sets the variable {name} of an enclosing function")
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                label = name
                if name in variables:
                    chain = [variables[name]]
                elif name not in _BUILTINS and not (name == "getattr" and self.by_name):
                    raise Unseen(f"uses {name}")
            elif instruction.opname in _ATTRIBUTES:
                yield name

    def value(self, value: Any, label: str) -> None:
        """Raise Unseen unless this global is a function that torch.fx sees, a module class or a constant of torch."""
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout) or value is torch.Tensor:
            return
        if _is_seen(value) or (isinstance(value, type) and issubclass(value, nn.Module)):
            return
        if not isinstance(value, types.FunctionType):
            raise Unseen(f"uses {label}, which is not a known function or module class")
        if value.__module__ and value.__module__.partition(".")[0] == "torch":
            raise Unseen(f"calls {label}, which torch.fx does not see")
        self.function(value)

    def constant(self, value: Any, label: str) -> None:
        if isinstance(value, tuple | list):
            for item in value:
                self.constant(item, label)
        elif isinstance(value, types.FunctionType) and not _is_seen(value):
            self.value(value, label)
        elif not isinstance(value, _CONSTANTS) and not _is_seen(value):
            raise Unseen(f"reads {label}, a {type(value).__name__}")

    def attribute(self, name: str) -> None:
        """Check an attribute of the module, or of another object in the code."""
        m = self.module
        known = name in _OF_MODULES or name in _LIST_METHODS
        self.adds |= name in _LIST_METHODS
        if name in m._modules or name in m._parameters or name in m._buffers:
            self.reads.children[name] = getattr(m, name) is not None
            known = True
        elif name in _plain(m):
            self.constant(m.__dict__[name], f"its attribute {name}")
            self.reads.constants[name] = m.__dict__[name]
            known = True
        elif not known and (held := _of_class(type(m), name)) is not None:
            self._of_class(name, held)
            known = True
        if name in self.inside:
            raise Unseen(f"may read the attribute {name} of a layer")
        if name.startswith("__") or (not known and name in _ATTRIBUTES_OF_PROXIES):
            raise Unseen(f"uses {name}")
        if not known and not hasattr(torch.Tensor, name):
            self.reads.constants[name] = MISSING

    def _of_class(self, name: str, held: Any) -> None:
        if isinstance(held, types.FunctionType | staticmethod | classmethod):
            self.function(getattr(held, "__func__", held))
        elif isinstance(held, property):
            self.function(held.fget)
        else:
            self.constant(held, f"the attribute {name} of its class")
            self.reads.constants[name] = held


def _plain(module: nn.Module) -> set[str]:
    """The names of a module's attributes that are neither torch's nor children, parameters or buffers."""
    own = set() if type(module).__module__.startswith("torch.nn.modules") else {*module.__dict__}
    return own - _MODULE_ATTRIBUTES


_MODULE_ATTRIBUTES = {*nn.Module().__dict__}


def _of_class(cls: type, name: str) -> Any:
    """The class attribute of this name; those of nn.Module count only if tensors do not have them."""
    for base in cls.__mro__:
        if base in (nn.Module, object):
            if name in base.__dict__ and name not in _OF_TENSORS_TOO:
                raise Unseen(f"uses {name} of a module")
        elif name in base.__dict__:
            return base.__dict__[name]
    return None


@cache
def _seen_functions() -> frozenset:
    """The functions that torch.fx records when they are called with a proxy."""
    functions = torch.overrides.get_overridable_functions()
    also = {torch._assert, nn.functional.sigmoid, nn.functional.tanh}
    return frozenset(f for several in functions.values() for f in several) | also


def _is_seen(value: Any) -> bool:
    try:
        if value in _seen_functions():
            return True
    except TypeError:  # not hashable
        return False
    owner = getattr(value, "__module__", None)
    return isinstance(value, types.BuiltinFunctionType) and owner in ("math", "operator", "_operator")


def _name(value: object) -> str:
    return getattr(value, "__qualname__", type(value).__name__)
