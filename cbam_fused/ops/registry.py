"""Loads the binaries, registers the Triton kernels, and describes the operators.

params stands for w1, w2, ws, b1, b2, bs; acc for the accumulation type: float64 for a float64 x, else float32.
switches is Switches.code of cbam_fused/variants/config.py.

forward(x, params, residual, relu, switches) -> (y, saved, index)
backward(dy, x, y, saved, index, params, switches) -> (dx, dw1, dw2, dws, db1, db2, dbs, dresidual)

w1 and w2, or ws, may be None: that gate is then 1. w2 alone is None where the switches say "single". ``saved``, acc,
holds, per image: mean and max over H, W; the channel gate g; the hidden vectors before their activation, one for each
time that the MLP is taken; the two gates whose sum g is, where it is one; mean and max over C; the spatial gate s.
``index``, int32, holds where the maxima were: (C) and (HW); on GPUs, with even ties, how many elements reach them. Of
both tensors only what there is has room (tensors.row_sizes). backward takes y if the forward ended in a ReLU, else
None, and dresidual is then None, too. Gradients of parameters have their type and strides; those of absent ones are
None.

Where something stands between the convolution and its sigmoid, each of the two is cut there:

gates_forward(x, params, switches) -> (saved, index), with the convolution's result in the place of s
apply_gates(x, saved, s, residual, relu, switches) -> y
gate_grads(dy, x, y, saved, s, switches) -> (dg, ds, dresidual)
backward_from_gate_grads(dy, s, dg, dlogits, x, saved, index, params, switches) -> (dx, dw1, dw2, dws, db1, db2, dbs)

s, ds and dlogits, the gradient of the convolution's result, are (N, 1, H, W), dg is (N, C), all acc.
backward_from_gate_grads takes dy behind the ReLU; without dy and s it gives the gradients of the gates alone. dg or
dlogits None: zeros.

_C implements them for tensors on the CPU and _C_cuda for those on NVIDIA GPUs. The Triton kernels are operators of
their own, triton_forward and so on, with the same arguments and results on any device: they exist without a binary, and
beside one that serves the same device.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, library
from torch._ops import OpOverload

from .._ops import ops
from ..checks import check
from ..tensors import accumulation_dtype, dense_like, row_sizes
from ..variants.config import decode

NAMESPACE = ops.name
DISTRIBUTION = "cbam_fused"

if hasattr(ops, "triton_forward"):  # a second registration would end the process
    raise ImportError(f"another copy of cbam_fused has registered the operators of {NAMESPACE} in this process")


def _find(stem: str) -> Path | None:
    """The binary in this package, or, when a source tree hides an installed package, in the installed one.

    All come from the first folder that has any: those of two builds need not agree on what they call each other with.
    """
    folders = [Path(__file__).parents[1]]
    folders += [Path(str(d.locate_file("cbam_fused"))) for d in importlib.metadata.distributions(name=DISTRIBUTION)]
    folder = next((folder for folder in folders if any(folder.glob("_C*.*so"))), folders[0])
    return next(iter(sorted(folder.glob(f"{stem}.*so"))), None)


def build_info() -> dict[str, Any]:
    """What the build wrote beside the binaries; empty where there is none."""
    binary = _find("_C")
    path = binary and binary.with_name("_build_info.json")
    return json.loads(path.read_text()) if path and path.exists() else {}


def _load(stem: str) -> str:
    """Load a binary; the returned text says why it is absent, and is empty if it is not."""
    path = _find(stem)
    if path is None:
        return f"cbam_fused/{stem} was not built"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        built_with = build_info().get("torch", torch.__version__)
        other = "" if built_with == torch.__version__ else f" (built with torch {built_with}, not {torch.__version__})"
        return f"{path} does not load{other}: {error.__cause__ or error}"  # the cause names what is missing
    return ""


if NAMESPACE == DISTRIBUTION:
    cpu_missing, cuda_missing = _load("_C"), _load("_C_cuda")
else:  # of kernel-builder's _ops.py, which has loaded the one binary
    cpu_missing, cuda_missing = "", "kernel-builder does not build cbam_fused/_C_cuda"


def _find_triton() -> str:
    """Why Triton cannot be used; it is only looked for, and imported when a tensor first needs it."""
    if not importlib.util.find_spec("triton"):
        return "triton is not installed"
    # On a GPU it compiles a part of itself, by what its runtime/build.py finds in this way; its interpreter does not.
    compiler = os.environ.get("CC", shutil.which("gcc") or shutil.which("clang"))
    if compiler or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return "Triton needs a C compiler: gcc or clang on PATH, or one named in CC"


triton_missing = _find_triton()

if not cpu_missing:
    cpu_capability = ops.cpu_capability.default
# Compute capabilities that _C_cuda was built for, as in TORCH_CUDA_ARCH_LIST.
cuda_architectures = () if cuda_missing else tuple(ops.cuda_architectures().split())


def cuda_unserved(device: torch.device) -> str:
    """Why _C_cuda cannot serve a GPU; empty if it can."""
    if cuda_missing:
        return cuda_missing
    return _unserved_gpu(None) if device.index is None else _unserved_gpu_of(device.index)


def _unserved_gpu(index: int | None) -> str:
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    properties = torch.cuda.get_device_properties(index)
    if runs(cuda_architectures, properties.major, properties.minor):
        return ""
    return f"built for {', '.join(cuda_architectures)}, not for a GPU of {properties.major}.{properties.minor}"


_unserved_gpu_of = cache(_unserved_gpu)  # which asks PyTorch, and that the driver


def runs(architectures: tuple[str, ...], major: int, minor: int) -> bool:
    """Whether code for these architectures runs on a GPU of this compute capability.

    Machine code runs on GPUs of the same major and no lower minor number, PTX on all that are not older.
    Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    for architecture in architectures:
        number, _, ptx = architecture.partition("+")
        built_major, built_minor = (int(part) for part in number.split("."))
        if (major, minor) >= (built_major, built_minor) and (ptx or major == built_major):
            return True
    return False


def _fake_gates_forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    w1, _, ws, *_, switches = args
    saved, index = row_sizes(x, w1, ws, switches)
    acc = accumulation_dtype(x.dtype)
    return x.new_empty((x.shape[0], saved), dtype=acc), x.new_empty((x.shape[0], index), dtype=torch.int32)


def _fake_forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *params, residual, _relu, switches = args
    check(x, tuple(params), residual, switches=decode(switches))
    return dense_like(x), *_fake_gates_forward(x, *params, switches)


def _fake_apply_gates(x: Tensor, *_: Any) -> Tensor:
    return dense_like(x)


def _fake_gate_grads(dy: Tensor, x: Tensor, y: Tensor | None, saved: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    N, C, H, W = x.shape
    return saved.new_empty((N, C)), saved.new_empty((N, 1, H, W)), None if y is None else dense_like(x)


def _fake_backward_from_gate_grads(
    dy: Any, s: Any, dg: Any, dlogits: Any, x: Tensor, saved: Tensor, index: Tensor, *args: Any
) -> tuple[Tensor | None, ...]:
    *params, _switches = args
    return dense_like(x), *(None if p is None else torch.empty_like(p) for p in params)


def _fake_backward(
    dy: Tensor, x: Tensor, y: Tensor | None, saved: Tensor, index: Tensor, *args: Any
) -> tuple[Tensor | None, ...]:
    grads = _fake_backward_from_gate_grads(None, None, None, None, x, saved, index, *args)
    return *grads, None if y is None else dense_like(x)


_FAKES: dict[str, Callable[..., Any]] = {
    "forward": _fake_forward,
    "backward": _fake_backward,
    "gates_forward": _fake_gates_forward,
    "apply_gates": _fake_apply_gates,
    "gate_grads": _fake_gate_grads,
    "backward_from_gate_grads": _fake_backward_from_gate_grads,
}
_PARAMS = "Tensor? w1, Tensor? w2, Tensor? ws, Tensor? b1, Tensor? b2, Tensor? bs"
# As csrc/binding/cpu.cpp has them.
_SCHEMAS = {
    "forward": f"(Tensor x, {_PARAMS}, Tensor? residual, bool relu, int switches) -> (Tensor, Tensor, Tensor)",
    "backward": f"(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor index, {_PARAMS}, int switches) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "gates_forward": f"(Tensor x, {_PARAMS}, int switches) -> (Tensor, Tensor)",
    "apply_gates": "(Tensor x, Tensor saved, Tensor s, Tensor? residual, bool relu, int switches) -> Tensor",
    "gate_grads": "(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor s, int switches) -> (Tensor, Tensor, Tensor)",
    "backward_from_gate_grads": "(Tensor? dy, Tensor? s, Tensor? dg, Tensor? dlogits, Tensor x, Tensor saved, "
    f"Tensor index, {_PARAMS}, int switches) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
}


@cache
def _triton_operators() -> ModuleType:
    """Imported when one of them is first called, since Triton takes long to import."""
    return importlib.import_module("..triton.operators", __package__)


def _triton(name: str) -> Callable[..., Any]:
    return lambda *args: getattr(_triton_operators(), name)(*args)


class Operators(NamedTuple):
    forward: OpOverload
    backward: OpOverload
    gates_forward: OpOverload
    apply_gates: OpOverload
    gate_grads: OpOverload
    backward_from_gate_grads: OpOverload


def _named(prefix: str) -> Operators:
    return Operators(*(getattr(ops, prefix + name).default for name in Operators._fields))


_library = library.Library(NAMESPACE, "FRAGMENT")
for _name, _schema in _SCHEMAS.items():
    _library.define(f"triton_{_name}{_schema}")
    _library.impl(f"triton_{_name}", _triton(_name), "CompositeExplicitAutograd")
    library.register_fake(f"{NAMESPACE}::triton_{_name}", _FAKES[_name])
operators = {"triton": _named("triton_")}
if cpu_missing and not cuda_missing:  # _C would have defined them
    for _name, _schema in _SCHEMAS.items():
        _library.define(f"{_name}{_schema}")
if not (cpu_missing and cuda_missing):
    for _name, _fake in _FAKES.items():
        library.register_fake(f"{NAMESPACE}::{_name}", _fake)
    operators |= {name: _named("") for name, missing in (("cpu", cpu_missing), ("cuda", cuda_missing)) if not missing}
