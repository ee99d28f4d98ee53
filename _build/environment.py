"""Finds the torch of a build without importing it."""

import importlib.machinery
import importlib.util
import os
import re
import runpy
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
    """The first torch that is new enough: on sys.path, else in the target environment, else on pip's PYTHONPATH.

    If CBAM_FUSED_BUILD_SITE is set, only this folder is searched: for tools whose isolated build cannot detect the
    target environment.

    Raises:
        FileNotFoundError: CBAM_FUSED_BUILD_SITE has no such torch.
    """
    site = os.environ.get("CBAM_FUSED_BUILD_SITE")
    if site:
        torch = _usable(importlib.machinery.PathFinder.find_spec("torch", [site]))
        if torch is None:
            raise FileNotFoundError(f"CBAM_FUSED_BUILD_SITE must be a folder with {TORCH_REQUIREMENT}, got {site}")
        return torch
    specs = (importlib.util.find_spec("torch"), _spec_in_target(), _spec_on_path_of_pip())
    return next(filter(None, map(_usable, specs)), None)


def _spec_in_target():
    # pip runs a build with the target's interpreter and hides the target's packages by environment variables; -E
    # ignores them.
    find = "import importlib.util; spec = importlib.util.find_spec('torch'); print(spec and spec.origin or '')"
    result = subprocess.run([sys.executable, "-E", "-c", find], capture_output=True, text=True, check=True)
    origin = result.stdout.strip()
    return importlib.util.spec_from_file_location("torch", origin) if origin else None


def _spec_on_path_of_pip():
    # pip overrides PYTHONPATH for the build; /proc has pip's own value.
    try:
        environment = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    variables = dict(line.split("=", 1) for line in environment.split("\0") if "=" in line)
    folders = [folder for folder in variables.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return importlib.machinery.PathFinder.find_spec("torch", folders) if folders else None


def _usable(spec) -> Torch | None:
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    facts = runpy.run_path(str(folder / "version.py"))
    release = tuple(int(part) for part in re.findall(r"\d+", facts["__version__"])[:2])
    return Torch(folder, facts["__version__"], facts["cuda"]) if release >= TORCH_FLOOR else None
