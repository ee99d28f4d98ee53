"""The CUDA kernels compiled for GPUs that are not here: what each needs, and what its machine code does."""

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nvcc
from hot_loops import Loop, hot_loops
from objects import ROOT, compiled

SOURCES = sorted(source.relative_to(ROOT) for source in (ROOT / "csrc" / "cuda").rglob("*.cu"))
FOLDER = ROOT / "build" / "machine_code"


@dataclass(frozen=True)
class Target:
    """What a multiprocessor has: shared memory in bytes, threads. Of registers, 65536, each has the same.

    Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    """

    shared: int
    threads: int


TARGETS = {
    "sm_75": Target(64 << 10, 1024),
    "sm_80": Target(164 << 10, 2048),
    "sm_90": Target(228 << 10, 2048),
    "sm_100": Target(228 << 10, 2048),
    "sm_120": Target(100 << 10, 1536),
}
REGISTERS = 65536
# The PTX of which a build for all GPUs makes the machine code.
PTX = {
    target: ptx
    for option in nvcc.code_options(nvcc.ARCHITECTURES.split())
    for ptx, targets in re.findall(r"arch=(\w+),code=\[(.*)\]", option)
    for target in targets.split(",")
}


@dataclass(frozen=True)
class Kernel:
    """A kernel in machine code.

    threads: of a block, as its launch bounds say. stack, local: bytes of a thread; static: of shared memory, of which
    the system takes 1024 from sm_90 on. local_accesses: instructions that access local memory; wide_loads and
    wide_stores: those that move 16 bytes of global memory, narrow_stores those that move fewer.
    """

    target: str
    source: str
    name: str
    arguments: tuple[str, ...]
    threads: int
    registers: int
    stack: int
    local: int
    static: int
    local_accesses: int
    wide_loads: int
    wide_stores: int
    narrow_stores: int

    def blocks(self) -> int:
        """How many fit on a multiprocessor at a time by registers and threads; shared memory depends on the launch."""
        granule = 256  # registers are given to a warp in such portions
        warps = self.threads // 32
        a_warp = -(-self.registers * 32 // granule) * granule
        return min(REGISTERS // a_warp // warps, TARGETS[self.target].threads // self.threads)


def find_tool(name: str) -> str | None:
    """Path of a tool of CUDA: in CUDA_HOME, on PATH, or among those that come with Triton."""
    home, triton = os.environ.get("CUDA_HOME"), importlib.util.find_spec("triton")
    folders = [Path(home, "bin")] if home else os.environ["PATH"].split(os.pathsep)
    if triton:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(name, path=os.pathsep.join(map(str, folders)))


def missing_tools() -> str:
    """Which of the tools are not there; empty if all are."""
    return ", ".join(tool for tool in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if find_tool(tool) is None)


def compile_all(targets=tuple(TARGETS)) -> dict[str, list[Kernel]]:
    """Every kernel for every target, compiled side by side."""
    units = [(target, source) for source in SOURCES for target in targets]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = list(pool.map(lambda unit: compile_one(*unit), units))
    return {target: [k for of_one in kernels for k in of_one if k.target == target] for target in targets}


def machine_code(target: str, source: Path, folder: Path = FOLDER) -> Path:
    """The file of it, which the folder keeps for all tests."""
    architecture = f"-gencode=arch={PTX[target]},code={target}"
    command = [find_tool("nvcc"), "-std=c++17", "-O3", architecture, "-cubin"]
    return compiled(folder, source, command, ".cubin")


def compile_one(target: str, source: Path, folder: Path = FOLDER) -> list[Kernel]:
    cubin = machine_code(target, source, folder)
    usage = run("cuobjdump", "-res-usage", cubin)
    code = run("nvdisasm", "-ndf", cubin)
    used = {
        symbol: {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", facts)}
        for symbol, facts in re.findall(r"Function (\S+):\n(.*)", usage)
    }
    names = run("c++filt", *used).splitlines() if used else []
    texts = texts_of(code)
    threads = {
        symbol: int(word, 16)
        for symbol, info in re.findall(r"\.section\s+\.nv\.info\.([^,\s]+),(.*?)(?=\n//-{5,} \.|\Z)", code, re.S)
        for word in re.findall(r"EIATTR_MAX_THREADS\b.*?\.word\s+(0x[0-9a-f]+)", info, re.S)[:1]
    }
    return [
        describe(target, source, name, used[symbol], texts[symbol], threads.get(symbol, 1024))
        for symbol, name in zip(used, names, strict=True)
    ]


def texts_of(code: str) -> dict[str, str]:
    """The instructions of each kernel, by its symbol, in what nvdisasm says."""
    return {
        symbol: text.split("\n\t.section", 1)[0]
        for symbol, text in re.findall(r"\n\.text\.(\S+):\n(.*?)(?=\n//-{5,} \.|\Z)", code, re.S)
    }


def loops_of(target: str, source: Path, folder: Path = FOLDER) -> dict[tuple[str, tuple[str, ...]], list[Loop]]:
    """The hot loops of the kernels of a source, by their names and template arguments."""
    texts = texts_of(run("nvdisasm", "-ndf", machine_code(target, source, folder)))
    found = {}
    for name, text in zip(run("c++filt", *texts).splitlines(), texts.values(), strict=True):
        kernel, arguments = re.search(r"(\w+)<([^<>()]*)>\(", enums_as_numbers(name)).groups()
        found[kernel, tuple(arguments.split(", "))] = hot_loops(text)
    return found


def enums_as_numbers(name: str) -> str:
    """Without the casts of template arguments: "kernel<(cbam::cuda::Maxima)0>(...)" as "kernel<0>(...)"."""
    return re.sub(r"\([\w:]+\)(?=\d)", "", name)


def describe(target: str, source: Path, full_name: str, used: dict, text: str, threads: int) -> Kernel:
    # void cbam::cuda::some_kernel<float, true>(cbam::Problem, ...)
    plain = enums_as_numbers(full_name.replace("(anonymous namespace)::", ""))
    name, arguments = re.search(r"(\w+)(?:<([^()]*)>)?\([^()]*\)$", plain).groups()
    stores = re.findall(r"\bSTG\.E[.\w]*", text)
    wide_stores = [s for s in stores if ".128" in s]
    return Kernel(
        target=target,
        source=f"{source.parent.name}/{source.name}",
        name=name,
        arguments=tuple(a.strip() for a in (arguments or "").split(",")),
        threads=threads,
        registers=used["REG"],
        stack=used["STACK"],
        local=used["LOCAL"],
        static=used["SHARED"],
        local_accesses=len(re.findall(r"\b(?:LDL|STL)\b", text)),
        wide_loads=len(re.findall(r"\bLDG\.E[.\w]*\.128\b", text)),
        wide_stores=len(wide_stores),
        narrow_stores=len(stores) - len(wide_stores),
    )


def run(tool: str, *arguments) -> str:
    result = subprocess.run([find_tool(tool), *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{tool} {' '.join(map(str, arguments))}:\n{result.stdout}{result.stderr}")
    return result.stdout
