"""Compiles kernels and launchers with the emulation into a Python module; what did not change is taken from build/."""

import importlib.machinery
import importlib.util
import os
import platform
import shlex
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
from objects import ROOT, compiled, digest, linked

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
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(_compile, [(source, [*flags, *includes]) for source, flags in units]))
    # -Bsymbolic: the runtime's functions here, not those of a libcudart that PyTorch has loaded.
    link = ["g++", "-shared", "-Wl,-Bsymbolic", *WRAPPED, *of_linker, "-pthread", *map(str, objects)]
    module = linked(FOLDER / f"{name}-{mode}-{digest(shlex.join(link).encode())}.so", link)
    # A name of its own, since of modules of one name pybind11 makes only the first.
    name = f"{mode}.{name}"
    loader = importlib.machinery.ExtensionFileLoader(name, str(module))
    loaded = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, module, loader=loader))
    loader.exec_module(loaded)
    return loaded


def _compile(unit: tuple[Path, list[str]]) -> Path:
    source, flags = unit
    return compiled(FOLDER, source, ["g++", *COMMON, *WARNINGS, *flags, "-xc++", "-c"], ".o")
