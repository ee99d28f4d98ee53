"""Compiles both bindings, syntax only, against the headers of the oldest supported torch.

    python tools/check_headers.py

A function that only newer headers have is an error. The headers are downloaded once, from the wheel of torch, and stay
in build/headers. The CUDA binding needs nvcc's toolkit.
"""

import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "_build"))
import build_kernels
import environment

ROOT = Path(__file__).parents[1]
VERSION = ".".join(map(str, environment.TORCH_FLOOR)) + ".0"
FOLDER = ROOT / "build" / "headers" / f"torch-{VERSION}"


def fetch() -> None:
    """Download the headers of torch into FOLDER."""
    target = ["--python-version", "3.12", "--platform", f"manylinux_2_28_{platform.machine()}"]  # for any Python
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *target]
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
        subprocess.run([*command, "--dest", temporary, f"torch=={VERSION}"], check=True)
        (wheel,) = Path(temporary).glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            headers = [name for name in archive.namelist() if name.startswith("torch/include/")]
            archive.extractall(temporary, headers)
        shutil.move(Path(temporary, "torch"), FOLDER)


def check(source: str, command: list[str]) -> bool:
    result = subprocess.run([*command, "-c", source, "-o", "/dev/null"], cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^.*\b(?:error|warning)\b.*$", result.stderr, re.MULTILINE)
    print(f"{source} with the headers of torch {VERSION}: {'failed' if result.returncode or found else 'compiles'}")
    if result.returncode or found:
        print(result.stderr)
    return not result.returncode and not found


def main() -> int:
    if not FOLDER.exists():
        fetch()
    kernels = build_kernels.Kernels(environment.Torch(FOLDER, VERSION, cuda=None))
    syntax = "-fsyntax-only"
    good = check(build_kernels.BINDING, kernels.binding(syntax))
    if kernels.nvcc is None:
        print(f"{build_kernels.CUDA_BINDING}: skipped, since it needs nvcc's headers and there is no nvcc")
    else:
        good &= check(build_kernels.CUDA_BINDING, kernels.cuda_binding(syntax))
    return not good


if __name__ == "__main__":
    sys.exit(main())
