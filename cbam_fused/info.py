"""Versions, built kernels, and backends of this machine."""

import importlib.metadata
import os
import platform
from types import SimpleNamespace
from typing import cast

import torch

from . import routing
from .ops import registry


def facts() -> dict[str, str]:
    built = registry.build_info()
    cpu = f"built for {', '.join(built.get('cpu', ['unknown']))}"
    if registry.cpu_missing:
        cpu = f"not available: {registry.cpu_missing}"
    return {
        "cbam_fused": built.get("version") or _version(registry.DISTRIBUTION),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "platform": platform.platform(),
        "compiler": built.get("compiler", "unknown"),
        "built with torch": built.get("torch", "unknown"),
        "CPU kernels": cpu,
        "Triton kernels": registry.triton_missing or f"triton {_triton_version()}",
        "CUDA kernels": _cuda_kernels(built),
        "instruction set": "none" if registry.cpu_missing else registry.cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch sees",
        "CBAM_FUSED_BACKEND": os.environ.get("CBAM_FUSED_BACKEND", "not set"),
        "cpu tensors": _backend("cpu"),
        "cuda tensors": _backend("cuda"),
    }


def _cuda_kernels(built: dict) -> str:
    if not registry.cuda_missing:
        return f"built for {', '.join(registry.cuda_architectures)}"
    said = built.get("cuda", "")
    why = said if said.startswith("not built") else f"not available: {registry.cuda_missing}"
    built_with = built.get("torch", torch.__version__)
    return why if built_with == torch.__version__ else f"{why} (built with torch {built_with}, not {torch.__version__})"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _triton_version() -> str:
    """The version of the distribution that provides triton, whose name differs for AMD and Intel GPUs."""
    names = importlib.metadata.packages_distributions().get("triton", ["triton"])
    return _version(names[0])


def _backend(device: str) -> str:
    # Only the tensor's device matters; a real CUDA tensor would need a GPU.
    try:
        return routing.backend_for(cast(torch.Tensor, SimpleNamespace(device=torch.device(device))))
    except RuntimeError as error:
        return f"none: {error}"
