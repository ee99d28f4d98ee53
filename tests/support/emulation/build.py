"""Compiles kernels and launchers with the emulation into a Python module; what did not change is taken from build/."""

import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[3]
# Compilers run in ROOT and get relative paths, so that a copy of the project finds what this one has built.
HERE = Path("tests/support/emulation")
FOLDER = ROOT / "build" / "emulation"
RUNTIME = [
    HERE / f"{name}.cpp"
    for name in ("scheduler", "groups", "counters", "launch", "memory", "checker", "instrumentation", "traffic")
]

COMMON = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-DCBAM_EMULATION"]
WARNINGS = [
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-class-memaccess",
    "-Wno-unused-function",
    "-Wno-sign-compare",
]
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


def kernel_sources() -> list[Path]:
    """The kernels and launchers; no binding for PyTorch."""
    folder = ROOT / "csrc" / "cuda"
    sources = sorted([*folder.rglob("*.cu"), *folder.rglob("*.cpp")])
    return [source.relative_to(ROOT) for source in sources]


def load(name: str, mode: str) -> ModuleType:
    """The module cbam_emulation (the kernels of csrc) or toys, in one of the MODES."""
    kernels, binding = {
        "cbam_emulation": (kernel_sources(), HERE / "module.cpp"),
        "toys": ([HERE / "toys.cu", HERE / "counter_toys.cu"], HERE / "toys_module.cpp"),
    }[name]
    of_kernels, of_rest, of_linker = MODES[mode]
    includes = [f"-I{HERE}", f"-I{HERE / 'include'}", "-I."]
    headers = [pybind11.get_include(), sysconfig.get_path("include")]
    of_bindings = [*of_rest, "-O0", *(f"-isystem{path}" for path in headers)]
    # Kernels come last: of an inline function in several objects the linker keeps the first, and what the runtime uses
    # must not be instrumented.
    units = [(source, of_bindings) for source in (HERE / "bindings.cpp", binding)]
    units += [(source, of_rest) for source in RUNTIME]
    # What is in a .cpp runs on the host only: nothing of it is to be checked or counted.
    units += [(source, of_rest if source.suffix == ".cpp" else of_kernels) for source in kernels]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda unit: _compile(unit[0], [*unit[1], *includes]), units))
    # -Bsymbolic: the runtime's functions here, not those of a libcudart that PyTorch has loaded.
    link = ["g++", "-shared", "-Wl,-Bsymbolic", *WRAPPED, *of_linker, "-pthread", *map(str, objects)]
    module = FOLDER / f"{name}-{mode}-{hashlib.sha256(shlex.join(link).encode()).hexdigest()[:16]}.so"
    if not module.exists():
        _make(module, link)
    # A name of its own, since of modules of one name pybind11 makes only the first.
    name = f"{mode}.{name}"
    loader = importlib.machinery.ExtensionFileLoader(name, str(module))
    loaded = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, module, loader=loader))
    loader.exec_module(loaded)
    return loaded


def _compile(source: Path, flags: list[str]) -> Path:
    """The object of one source, which is kept under the contents of all that it was made from."""
    command = ["g++", *COMMON, *WARNINGS, *flags, "-xc++", "-c", str(source)]
    name = f"{source.stem}-{hashlib.sha256(shlex.join(command).encode()).hexdigest()[:16]}"
    # The compiler's list of what it read, of the last time.
    record = FOLDER / f"{name}.d"
    if record.exists() and (known := FOLDER / f"{name}-{_contents(record)}.o").exists():
        return known
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        made, read = Path(temporary) / "o", Path(temporary) / "d"
        _make(made, [*command, "-MMD", "-MF", str(read)])
        made.replace(target := FOLDER / f"{name}-{_contents(read)}.o")
        read.replace(record)
    return target


def _contents(record: Path) -> str:
    names = record.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    files = [ROOT / name for name in names]
    contents = [file.read_bytes() if file.exists() else b"" for file in files]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def _make(target: Path, command: list[str]) -> None:
    """Runs a compiler. What it makes appears when it is whole."""
    unfinished = Path(f"{target}.{os.getpid()}")
    result = subprocess.run([*command, "-o", str(unfinished)], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        unfinished.unlink(missing_ok=True)
        raise RuntimeError(f"this failed: {shlex.join(command)}\n{result.stderr[:4000]}")
    unfinished.replace(target)
