"""The check of shapes, dtypes and devices. Messages name the argument, its allowed values and the value given."""

import torch
from torch import Tensor, nn

from .tensors import Parameters
from .variants.config import Switches

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(
    x: Tensor,
    params: Parameters,
    residual: Tensor | None,
    ties: str = "first",
    norm: nn.Module | None = None,
    switches: Switches | None = None,
) -> None:
    """Arguments as in :func:`cbam_fused.functional.cbam`.

    Raises:
        TypeError: an argument that is not a tensor or has a wrong dtype.
        ValueError: a wrong shape or device, unknown ties.
    """
    w1, w2, ws, b1, b2, bs = params
    check_input(x, residual)
    if w1 is None and w2 is None and ws is None:
        raise ValueError("w1 and w2, or ws, or all three must be given, got none")
    if ties not in ("first", "even"):
        raise ValueError(f"ties must be 'first' or 'even', got {ties!r}")
    C = x.shape[1]
    R = w1.shape[0] if isinstance(w1, Tensor) and w1.dim() > 0 else 0
    maps = 1 if switches is not None and switches.maps == "mean" else 2
    if switches is not None and switches.width == "single":
        if w1 is not None and (not isinstance(w1, Tensor) or w1.shape not in ((C, C), (C, C, 1, 1))):
            raise _wrong("w1", w1, f"({C}, {C}) or ({C}, {C}, 1, 1) for the {C} channels of x")
        for name, t in (("w2", w2), ("b2", b2)):
            if t is not None:
                raise ValueError(f"{name} must be None with width='single', which has one layer")
    elif w1 is not None or w2 is not None:
        if not isinstance(w1, Tensor) or (w1.shape != (R, C) and w1.shape != (R, C, 1, 1)) or R == 0:
            raise _wrong("w1", w1, f"(R, {C}) or (R, {C}, 1, 1) with R of at least 1 for the {C} channels of x")
        if not isinstance(w2, Tensor) or (w2.shape != (C, R, 1, 1) and w2.shape != (C, R)):
            raise _wrong("w2", w2, f"({C}, {R}) or ({C}, {R}, 1, 1) for the {C} channels of x and the {R} rows of w1")
    if ws is not None and (
        not isinstance(ws, Tensor)
        or ws.dim() != 4
        or ws.shape[:2] != (1, maps)
        or ws.shape[2] != ws.shape[3]
        or ws.shape[3] % 2 == 0
    ):
        raise _wrong("ws", ws, f"(1, {maps}, k, k) with k odd")
    for name, bias, size, weight in (("b1", b1, R, w1), ("b2", b2, C, w1), ("bs", bs, 1, ws)):
        if bias is not None and weight is None:
            raise ValueError(f"{name} must be None without {'ws' if name == 'bs' else 'w1 and w2'}")
        if bias is not None and (not isinstance(bias, Tensor) or bias.shape != (size,)):
            raise _wrong(name, bias, f"({size},) or None")
    for name, parameter in {"w1": w1, "w2": w2, "ws": ws, "b1": b1, "b2": b2, "bs": bs}.items():
        if parameter is not None:
            _check_like(name, parameter, x, or_float32=x.dtype in (torch.float16, torch.bfloat16))
    if norm is not None:
        _check_norm(norm, ws, x)


def check_input(x: object, residual: object = None) -> None:
    """The part of :func:`check` for the feature maps."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of float32, float64, float16 or bfloat16, got {got}")
    if x.layout != torch.strided or x.is_nested:
        raise _not_dense("x", x)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be (N, C, H, W) with C, H, W of at least 1, got {tuple(x.shape)}")
    if residual is not None:
        if not isinstance(residual, Tensor) or residual.shape != x.shape:
            raise _wrong("residual", residual, f"{tuple(x.shape)}, the shape of x, or None")
        _check_like("residual", residual, x)


def _check_like(name: str, t: Tensor, x: Tensor, or_float32: bool = False) -> None:
    if t.layout != torch.strided or t.is_nested:
        raise _not_dense(name, t)
    if t.dtype != x.dtype and not (or_float32 and t.dtype == torch.float32):
        allowed = f"{x.dtype} or torch.float32" if or_float32 else f"{x.dtype}"
        raise TypeError(f"{name} must be {allowed} for x of {x.dtype}, got {t.dtype}")
    if t.device != x.device:
        raise ValueError(f"{name} must be on {x.device} like x, got {t.device}")


def _check_norm(norm: nn.Module, ws: Tensor | None, x: Tensor) -> None:
    if ws is None:
        raise ValueError("norm must be None without ws: it follows the spatial convolution")
    if not isinstance(norm, nn.Module):
        raise TypeError(f"norm must be a module such as nn.BatchNorm2d(1), or None, got {type(norm).__name__}")
    if getattr(norm, "num_features", 1) != 1:
        raise ValueError(f"norm must have 1 feature, got {norm.num_features}")
    for t in (getattr(norm, "weight", None), getattr(norm, "running_mean", None)):
        if t is not None and t.device != x.device:
            raise ValueError(f"norm must be on {x.device} like x, got {t.device}")


def _not_dense(name: str, t: Tensor) -> TypeError:
    return TypeError(f"{name} must be a dense tensor, got {'a nested tensor' if t.is_nested else t.layout}")


def _wrong(name: str, value: object, wanted: str) -> Exception:
    if not isinstance(value, Tensor):
        return TypeError(f"{name} must be a tensor {wanted}, got {type(value).__name__}")
    return ValueError(f"{name} must be {wanted}, got {tuple(value.shape)}")
