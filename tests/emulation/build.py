"""Compiles kernels and launchers with the emulation into a Python module; what did not change is taken from build/."""

import hashlib
import importlib.machinery
import importlib.util
import platform
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNTIME = [
    HERE / f"{name}.cpp"
    for name in ("scheduler", "groups", "launch", "memory", "checker", "instrumentation", "traffic", "bindings")
]

COMMON = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
WARNINGS = ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-class-memaccess", "-Wno-unused-function"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Accesses of the machine as in the source: none joined, none made into a call of memset.
CHECKED = ["-fsanitize=thread", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-fno-store-merging"]
CHECKED += ["-fno-tree-loop-distribute-patterns"]
WRAPPED = [f"-Wl,--wrap={name}" for name in ("memcpy", "memmove", "memset")]
# Of each mode: flags of the kernels, flags of the rest, and of the linker.
MODES = {
    "plain": (["-O2"], ["-O2"], []),
    "checked": (["-O2", *CHECKED], ["-O2"], []),
    "sanitized": (["-O1", *SANITIZE], ["-O1", *SANITIZE], SANITIZE),
}


# Why nothing can be emulated here; empty if it can.
obstacle = ""
if platform.machine() != "x86_64":
    obstacle = f"the emulation's switch between threads is for x86-64, and this is {platform.machine()}"
elif shutil.which("g++") is None:
    obstacle = "the emulation needs g++"


def kernel_sources(csrc: Path) -> list[Path]:
    """The kernels and launchers, in a folder like csrc."""
    sources = sorted([*csrc.glob("cuda/*.cu"), *csrc.glob("cuda/*.cpp")])
    return [source for source in sources if source.name != "ops_cuda.cpp"]


def load(name: str, mode: str, csrc: Path = ROOT / "csrc", folder: Path = ROOT / "build" / "emulation") -> ModuleType:
    """The module cbam_emulation (the kernels of csrc) or toys, in one of the MODES."""
    kernels, binding = {
        "cbam_emulation": (kernel_sources(csrc), HERE / "module.cpp"),
        "toys": ([HERE / "toys.cu"], HERE / "toys_module.cpp"),
    }[name]
    of_kernels, of_rest, of_linker = MODES[mode]
    includes = [f"-I{HERE}", f"-I{HERE / 'include'}", f"-I{csrc.parent}"]
    # PyTorch brings pybind11's headers.
    headers = [Path(torch.__file__).parent / "include", sysconfig.get_path("include")]
    binding_flags = [f"-isystem{path}" for path in headers]
    units = [(source, ["-DCBAM_EMULATION", *of_kernels, *includes]) for source in kernels]
    units += [(source, [*of_rest, *includes, *binding_flags]) for source in [*RUNTIME, binding]]
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda unit: _compile(*unit, folder), units))
    contents = hashlib.sha256(b"".join(path.read_bytes() for path in objects)).hexdigest()[:16]
    module = folder / f"{name}-{mode}-{contents}.so"
    if not module.exists():
        # -Bsymbolic: the runtime's functions here, not those of a libcudart that PyTorch has loaded.
        link = ["g++", "-shared", "-Wl,-Bsymbolic", *WRAPPED, *of_linker, "-pthread"]
        _run([*link, *map(str, objects), "-o", f"{module}.new"])
        Path(f"{module}.new").replace(module)
    # A name of its own, since of modules of one name pybind11 makes only the first.
    name = f"{mode}.{name}"
    loader = importlib.machinery.ExtensionFileLoader(name, str(module))
    loaded = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, module, loader=loader))
    loader.exec_module(loaded)
    return loaded


def _compile(source: Path, flags: list[str], folder: Path) -> Path:
    """The object of one source: the one in the folder unless something that it was made from has changed."""
    command = ["g++", *COMMON, *WARNINGS, *flags, "-xc++", "-c", str(source)]
    key = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]
    target, record = folder / f"{source.stem}-{key}.o", folder / f"{source.stem}-{key}.d"
    made_from = folder / f"{source.stem}-{key}.sha256"
    if target.exists() and record.exists() and made_from.exists() and made_from.read_text() == _contents(record):
        return target
    _run([*command, "-o", f"{target}.new", "-MMD", "-MF", str(record)])
    Path(f"{target}.new").replace(target)
    made_from.write_text(_contents(record))
    return target


def _contents(record: Path) -> str:
    """Of the files that the compiler read, as it recorded them."""
    names = record.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    if not all(Path(name).exists() for name in names):
        return "a header is gone"
    return hashlib.sha256(b"".join(Path(name).read_bytes() for name in names)).hexdigest()


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"this failed: {shlex.join(command)}\n{result.stderr[:4000]}")
