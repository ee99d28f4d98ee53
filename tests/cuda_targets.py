"""The CUDA kernels in machine code for GPUs that need not be here: what each needs, and what it does."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cbam_fused import _ops

FOLDER = Path(__file__).parent.parent / "csrc" / "cuda"
# Threads that a multiprocessor takes, and 65536 registers each.
# Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
TARGETS = {"sm_80": 2048, "sm_90": 2048, "sm_100": 2048, "sm_120": 1536}
REGISTERS = 65536


@dataclass(frozen=True)
class Kernel:
    """A kernel in machine code.

    threads: of a block, as its launch bounds say. stack, local: bytes of a thread; static: of shared memory, of which
    the system takes 1024 from sm_90 on. local_accesses: instructions that access local memory; wide_loads and
    wide_stores: those that move 16 bytes of global memory.
    """

    target: str
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

    def blocks(self) -> int:
        """How many fit on a multiprocessor at a time by registers and threads; shared memory depends on the launch."""
        granule = 256  # registers are given to a warp in such portions
        warps = self.threads // 32
        a_warp = -(-self.registers * 32 // granule) * granule
        return min(REGISTERS // a_warp // warps, TARGETS[self.target] // self.threads)


def find_tool(name: str) -> str | None:
    """Path of a tool of CUDA: in CUDA_HOME, on PATH, or among those that come with Triton."""
    home, triton = os.environ.get("CUDA_HOME"), importlib.util.find_spec("triton")
    folders = [*([os.path.join(home, "bin")] if home else []), *os.environ["PATH"].split(os.pathsep)]
    if triton:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which(name, path=os.pathsep.join(folders))


def missing_tools() -> str:
    """Which of the tools are not there; empty if all are."""
    return ", ".join(tool for tool in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if find_tool(tool) is None)


def all_kernels() -> dict[str, list[Kernel]]:
    """Every kernel for every target: those of the library if it is newer than the sources, else compiled for this."""
    with tempfile.TemporaryDirectory() as folder:
        units = built(folder) or [(target, source) for source in sorted(FOLDER.glob("*.cu")) for target in TARGETS]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = pool.map(lambda unit: (read_cubin if unit[1].suffix == ".cubin" else compile_one)(*unit), units)
            kernels = [kernel for some in read for kernel in some]
    return {target: [kernel for kernel in kernels if kernel.target == target] for target in TARGETS}


def built(folder: str) -> list[tuple[str, Path]]:
    """The cubins in the library, with their targets; none if it is older than a source or not for all targets."""
    library = _ops._find("_C_cuda")
    if library is None or any(f.stat().st_mtime > library.stat().st_mtime for f in FOLDER.iterdir()):
        return []
    run("cuobjdump", "-xelf", "all", library, cwd=folder)
    # cuobjdump names them library.number.target.cubin
    found = [(path.suffixes[-2][1:], path) for path in sorted(Path(folder).glob("*.cubin"))]
    return [unit for unit in found if unit[0] in TARGETS] if {target for target, _ in found} >= TARGETS.keys() else []


def compile_one(target: str, source: Path, *options: str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        run("nvcc", "-std=c++17", "-O3", f"-arch={target}", "-cubin", *options, "-o", cubin, source)
        return read_cubin(target, cubin)


def read_cubin(target: str, cubin: Path) -> list[Kernel]:
    usage, code = run("cuobjdump", "-res-usage", cubin), run("nvdisasm", "-ndf", cubin)
    used = {
        symbol: {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", facts)}
        for symbol, facts in re.findall(r"Function (\S+):\n(.*)", usage)
    }
    sections = re.split(r"\n//-{5,} ", code)
    texts = {s.split(None, 1)[0].removeprefix(".text."): s for s in sections if s.startswith(".text.")}
    infos = {s.split(None, 1)[0].removeprefix(".nv.info."): s for s in sections if s.startswith(".nv.info.")}
    names = run("c++filt", *used).splitlines() if used else []
    return [
        describe(target, name, used[symbol], texts[symbol], infos[symbol])
        for symbol, name in zip(used, names, strict=True)
    ]


def describe(target: str, full_name: str, used: dict[str, int], text: str, info: str) -> Kernel:
    # void cbam::cuda::some_kernel<float, true>(cbam::Problem, ...)
    plain = full_name.replace("(anonymous namespace)::", "")
    name, arguments = re.search(r"(\w+)(?:<([^()]*)>)?\([^()]*\)$", plain).groups()
    return Kernel(
        target=target,
        name=name,
        arguments=tuple(a.strip().removeprefix("cbam::cuda::") for a in (arguments or "").split(",")),
        threads=int(re.search(r"EIATTR_MAX_THREADS\b.*?\.word\s+(0x[0-9a-f]+)", info, re.S)[1], 16),
        registers=used["REG"],
        stack=used["STACK"],
        local=used["LOCAL"],
        static=used["SHARED"],
        local_accesses=len(re.findall(r"\b(?:LDL|STL)\b", text)),
        wide_loads=len(re.findall(r"\bLDG\.E[.\w]*\.128\b", text)),
        wide_stores=len(re.findall(r"\bSTG\.E[.\w]*\.128\b", text)),
    )


def run(tool: str, *arguments, cwd: str | None = None) -> str:
    command = [find_tool(tool), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
    return result.stdout
