"""Chooses the backend for a tensor, and gives the reason for the reference."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import batch_norm
from .ops import registry
from .tensors import TRITON_ELEMENTS
from .variants.config import Switches

# In order of preference.
BACKENDS = ("cpu", "cuda", "triton")
NAMES = ("auto", *BACKENDS, "reference")
DEVICES = {"cpu": ("cpu", "meta"), "cuda": ("cuda",), "triton": ("cuda", "xpu")}
CPU = torch.device("cpu")
# The forced backend, or "auto"; see use_backend. Reading the environment takes longer than a small map.
wanted = os.environ.get("CBAM_FUSED_BACKEND", "auto")


def backend_for(x: Tensor) -> str:
    """The backend for x: "cpu", "cuda" (C++, CUDA kernels), "triton" or "reference" (plain PyTorch).

    GPU tensors use the CUDA kernels if these were built for the GPU, else Triton's. The reference is used for devices
    without kernels, functorch transforms, forward-mode AD, torch.onnx.export and torch.jit.trace, and for everything
    with CBAM_FUSED_BACKEND=reference. With CBAM_FUSED_BACKEND=cpu, =cuda or =triton missing kernels are an error.
    Triton supports GPUs, and CPU tensors only if both CBAM_FUSED_BACKEND=triton and TRITON_INTERPRET=1 are set.
    CBAM_FUSED_BACKEND is read at import; :func:`cbam_fused.use_backend` overrides it later.

    Raises:
        RuntimeError: CBAM_FUSED_BACKEND names an unknown backend, or one without kernels for x.
    """
    backend = "cpu" if wanted == "auto" and x.device == CPU and not registry.cpu_missing else _find_backend(x.device)
    return "reference" if _needs_plain_operators() else backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """In the block, CBAM_FUSED_BACKEND=name holds for every thread.

    Raises:
        ValueError: the name is not "auto", "cpu", "cuda", "triton" or "reference".
    """
    global wanted
    if name not in NAMES:
        raise ValueError(f"backend must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {name!r}")
    before, wanted = wanted, name
    try:
        yield
    finally:
        wanted = before


def without_demand() -> AbstractContextManager[None]:
    """Ignore a forced backend other than "reference" in the block: modules are tested on the CPU before they move."""
    return use_backend("reference" if wanted == "reference" else "auto")


def _find_backend(device: torch.device) -> str:
    if wanted not in NAMES:
        raise RuntimeError(f"CBAM_FUSED_BACKEND must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {wanted!r}")
    if wanted == "auto":
        served = (name for name in BACKENDS if device.type in DEVICES[name] and not _missing(name, device))
        return next(served, "reference")
    if wanted != "reference" and (reason := _missing(wanted, device)):
        raise RuntimeError(f"CBAM_FUSED_BACKEND={wanted}, but x is on {device}; {reason}")
    return wanted


def why_reference(device: torch.device) -> str:
    """The reason for the reference for tensors on the device."""
    if _needs_plain_operators():
        return "torch.func, forward mode, torch.jit.trace and torch.onnx.export need plain operators"
    if wanted == "reference":
        return "kernels are disabled by CBAM_FUSED_BACKEND or use_backend"
    reasons = [_missing(backend, device) for backend in BACKENDS if device.type in DEVICES[backend]]
    return "; ".join((f"no kernels for {device.type} tensors", *reasons))


def _missing(backend: str, device: torch.device) -> str:
    """Why this backend has no kernels for tensors on the device; empty if it has."""
    served = device.type in DEVICES[backend]
    if backend == "cpu":
        reason = registry.cpu_missing or ("" if served else "they serve tensors on a CPU")
        return reason and f"CPU kernels: {reason}"
    if backend == "cuda":
        if served:
            return registry.cuda_unserved(device)
        return f"CUDA kernels: {registry.cuda_missing or 'they serve tensors on NVIDIA GPUs'}"
    if registry.triton_missing or served:
        return registry.triton_missing
    # The interpreter is used only if forced.
    interpreted = device.type == "cpu" and wanted == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return "" if interpreted else "Triton serves tensors on a CPU only with TRITON_INTERPRET=1"


def _needs_plain_operators() -> bool:
    """Whether a transform has no rule for our operators, or the result runs without them."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch._C._get_tracing_state() is not None or (
        torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
    )


def unserved_switches(switches: Switches, *gates: str) -> str:
    """The switches of these gates, "channel" or "spatial", without kernels in any backend; empty if none."""
    other = "channel" in gates and not {*switches.pools} <= {"avg", "max"}
    return f"pools={switches.pools!r}" if other else ""


def unserved(backend: str, x: Tensor, norm: nn.Module | None, switches: Switches, *gates: str) -> str:
    """Why this backend has no kernel for such a call; empty if it has."""
    if reason := unserved_switches(switches, *gates):
        return reason
    if not batch_norm.is_plain(norm):
        return f"{type(norm).__name__} instead of BatchNorm2d"
    if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and batch_norm.uses_batch_statistics(norm):
        if isinstance(norm, nn.SyncBatchNorm):
            return "SyncBatchNorm, whose statistics are over all processes"
        if x.shape[0] == 0:
            return "batch statistics of an empty batch"
    if backend == "triton" and x.shape[1:].numel() > TRITON_ELEMENTS:
        return "images of more than 2^29 elements"
    return ""
