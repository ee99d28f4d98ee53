"""The operators of exported programs. They choose kernels and derivatives at run time.

The raw operators have no derivative, so a program of raw operators would not train. The operators here are composite:
torch.export keeps them whole; AOTInductor decomposes them into the raw operators, torch.onnx.export into plain ones.
"""

from typing import Any

import torch
from torch import Tensor, library

from . import reference
from .functional import gates_of
from .ops import autograd, registry
from .routing import backend_for, unserved
from .tensors import accumulation_dtype
from .variants.config import decode


def cbam(x: Tensor, *args: Any) -> Tensor:
    *params, residual, relu, switches = args
    backend = _backend(x, params, switches)
    if backend == "reference":
        return reference.cbam(x, *params, residual=residual, relu=relu, switches=decode(switches))
    return autograd.Cbam.apply(x, *args, backend)


def cbam_batch_norm(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the batch statistics: mean and variance."""
    *params, weight, bias, residual, relu, switches, eps = args
    backend = _backend(x, params, switches)
    if backend != "reference":
        return autograd.CbamBatchNorm.apply(x, *args, backend)
    statistics: list[Tensor] = []

    def norm(logits: Tensor) -> Tensor:
        normalised, mean, inverse_deviation = torch.native_batch_norm(logits, weight, bias, None, None, True, 0.0, eps)
        statistics.extend((mean.detach(), inverse_deviation.detach() ** -2 - eps))
        return normalised

    y = reference.cbam(x, *params, norm=norm, residual=residual, relu=relu, switches=decode(switches))
    return y, statistics[0], statistics[1]


def gate(x: Tensor, *args: Any) -> Tensor:
    *params, switches = args
    backend = _backend(x, params, switches)
    if backend == "reference":
        # Not x's dtype: exported programs expect the dtype of the kernels.
        return autograd.gate_reference(switches, x, *params).to(accumulation_dtype(x.dtype))
    return autograd.Gate.apply(x, *args, backend)


def _backend(x: Tensor, params: list[Any], switches: int) -> str:
    backend = backend_for(x)
    w1, _, ws, *_ = params
    plain = torch.onnx.is_in_onnx_export() or unserved(backend, x, None, decode(switches), *gates_of(w1, ws))
    return "reference" if plain else backend


_PARAMS = "Tensor? w1, Tensor? w2, Tensor? ws, Tensor? b1, Tensor? b2, Tensor? bs"
_SCHEMAS = {
    cbam: f"cbam(Tensor x, {_PARAMS}, Tensor? residual, bool relu, int switches) -> Tensor",
    cbam_batch_norm: f"cbam_batch_norm(Tensor x, {_PARAMS}, Tensor? weight, Tensor? bias, Tensor? residual, "
    "bool relu, int switches, float eps) -> (Tensor, Tensor, Tensor)",
    gate: f"gate(Tensor x, {_PARAMS}, int switches) -> Tensor",
}
_library = library.Library(registry.NAMESPACE, "FRAGMENT")
for _function, _schema in _SCHEMAS.items():
    _library.define(_schema)
    _library.impl(_function.__name__, _function, "CompositeImplicitAutograd")
