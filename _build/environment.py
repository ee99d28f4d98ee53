"""What a build finds around it: torch (without importing it), nvcc, and whether the CUDA kernels can be built."""

import importlib.machinery
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH_FLOOR = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"


@dataclass(frozen=True)
class Torch:
    folder: Path
    version: str
    cuda: str | None


def find_torch() -> Torch | None:
    """The first torch new enough to build against: on sys.path, else in the environment the package goes into.

    CBAM_FUSED_BUILD_SITE, the site-packages of the environment to build for, is looked at alone if it is set: for
    tools that build in an environment of their own, from which the target cannot be told.

    Raises:
        FileNotFoundError: CBAM_FUSED_BUILD_SITE holds no such torch.
    """
    site = os.environ.get("CBAM_FUSED_BUILD_SITE")
    if site:
        torch = _usable(importlib.machinery.PathFinder.find_spec("torch", [site]))
        if torch is None:
            raise FileNotFoundError(f"CBAM_FUSED_BUILD_SITE={site} must hold {TORCH_REQUIREMENT}, but does not")
        return torch
    return _usable(importlib.util.find_spec("torch")) or _usable(_spec_in_target())


def _spec_in_target():
    # pip runs a build with the interpreter of the target and hides the target's packages by environment variables,
    # which -E ignores.
    find = "import importlib.util; spec = importlib.util.find_spec('torch'); print(spec and spec.origin or '')"
    result = subprocess.run([sys.executable, "-E", "-c", find], capture_output=True, text=True, check=True)
    origin = result.stdout.strip()
    return importlib.util.spec_from_file_location("torch", origin) if origin else None


def _usable(spec) -> Torch | None:
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    facts = runpy.run_path(str(folder / "version.py"))
    release = tuple(int(part) for part in re.findall(r"\d+", facts["__version__"])[:2])
    return Torch(folder, facts["__version__"], facts["cuda"]) if release >= TORCH_FLOOR else None


def find_nvcc() -> str | None:
    """Path of nvcc, in CUDA_HOME if that is set, else on PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)


def nvcc_version(nvcc: str) -> str:
    """For example "13.0"; empty if it does not say."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else ""


def cuda_obstacle(torch_cuda: str | None, nvcc: str | None) -> str:
    """Why the CUDA kernels cannot be built for this torch; empty if they can."""
    if torch_cuda is None:
        return "the torch of the build is one without CUDA"
    if nvcc is None:
        return "nvcc was not found in CUDA_HOME or on PATH"
    version = nvcc_version(nvcc)
    if not version:
        return f"`{nvcc} --version` failed"
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        return f"nvcc is of CUDA {version}, but torch of CUDA {torch_cuda}; the major versions must agree"
    return ""


ARCHITECTURES = "8.0 8.6 8.9 9.0 10.0 12.0"


def known_architectures(nvcc: str) -> list[str]:
    """For example ["8.0", ..., "12.1"], in nvcc's order."""
    text = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return [f"{number[:-1]}.{number[-1]}" for number in re.findall(r"compute_(\d+)", text)]


def architectures(known: list[str]) -> list[str]:
    """The compute capabilities to compile for, out of those that nvcc knows, as in TORCH_CUDA_ARCH_LIST.

    "9.0" stands for machine code, "9.0+PTX" also for code that newer GPUs can translate. Without TORCH_CUDA_ARCH_LIST:
    those of ARCHITECTURES that are known, the newest with PTX.

    Raises:
        ValueError: TORCH_CUDA_ARCH_LIST has something else in it, or a capability that nvcc does not know.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not wanted:
        default = [capability for capability in ARCHITECTURES.split() if capability in known]
        return [*default[:-1], f"{default[-1]}+PTX"]
    chosen = {}
    for entry in wanted:
        # 9.0a and 10.0f allow instructions that no kernel here has.
        match = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", entry)
        if match is None or match[1] not in known:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST={os.environ['TORCH_CUDA_ARCH_LIST']!r}: {entry!r} is not one of the compute "
                f"capabilities that this nvcc compiles for, with or without +PTX: {', '.join(known)}"
            )
        chosen[match[1]] = chosen.get(match[1], "") or match[2] or ""
    return [capability + ptx for capability, ptx in chosen.items()]


def code_options(architectures: list[str]) -> list[str]:
    """nvcc's options for these architectures."""
    options = []
    for architecture in architectures:
        number = architecture.removesuffix("+PTX").replace(".", "")
        options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return options
