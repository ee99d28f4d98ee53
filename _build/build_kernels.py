"""The commands that build the kernels: the library _C and, if possible, _C_cuda."""

import os
import platform
from pathlib import Path

import compiler
import environment
import flags
import nvcc
from ninja_file import Ninja, first_error

BINDING, CUDA_BINDING = "csrc/binding/cpu.cpp", "csrc/binding/cuda.cpp"
HOST = ["-fPIC", "-Wall", "-fvisibility=hidden"]  # for the C++ compiler that nvcc calls


def jobs() -> int:
    """The number of parallel compilers: MAX_JOBS; other values than numbers are ignored, as in torch."""
    asked = os.environ.get("MAX_JOBS", "")
    return int(asked) if asked.isdigit() and int(asked) else os.cpu_count() or 1


def switch(name: str) -> bool:
    return os.environ.get(name) == "1"


class Kernels:
    """A build of the kernels for a torch, by default the environment's.

    compiler: the C++ compiler; isas: the instruction sets of _C; cuda: the status of _C_cuda, "built for ..." or "not
    built: ...".

    Raises:
        RuntimeError: there is no torch, ninja or C++ compiler.
        ValueError: an environment variable has an invalid value.
    """

    def __init__(self, torch: environment.Torch | None = None):
        self.torch = torch or environment.find_torch()
        if self.torch is None:
            raise RuntimeError(
                f"building needs {environment.TORCH_REQUIREMENT}, and this environment has none: "
                f'run `pip install "{environment.TORCH_REQUIREMENT}"` first, or leave out --no-build-isolation'
            )
        self.compiler = compiler.find()
        self.native = switch("CBAM_FUSED_NATIVE")
        self.isas = flags.isas(platform.machine())
        if self.native:
            widest = flags.widest(self.isas, self.compiler.macros())
            self.isas = {isa: own for isa, own in self.isas.items() if isa in (flags.BASE.get(widest), widest)}
        self.sanitize = flags.SANITIZE if switch("CBAM_FUSED_SANITIZE") else []
        self.nvcc = nvcc.find_nvcc()
        self.architectures, self.cuda = self._plan_cuda()

    def _plan_cuda(self) -> tuple[list[str], str]:
        wanted = nvcc.wanted()
        try:
            architectures = nvcc.plan(self.torch.cuda, self.nvcc, self.native)
        except nvcc.Unavailable as reason:
            if wanted == "1":
                raise RuntimeError(f"CBAM_FUSED_CUDA=1, but {reason}") from reason
            return [], f"not built: {reason}"
        return architectures, f"built for {', '.join(architectures)}"

    def build(self, folder: Path) -> dict[str, Path]:
        """Compile and link; return the libraries by name. If _C_cuda is missing, self.cuda gives the reason.

        Raises:
            RuntimeError: _C does not compile, or _C_cuda does not although CBAM_FUSED_CUDA=1.
        """
        try:
            ninja = Ninja(folder, jobs(), hidden=nvcc.FLAGS)
        except ModuleNotFoundError as error:
            raise RuntimeError("building needs ninja: run `pip install ninja` first") from error
        # ninja starts them in this order: the longest first, so that both cores end together.
        made = {"_C_cuda": self._cuda(ninja)} if self.architectures else {}
        made["_C"] = self._cpu(ninja)
        said = ninja.run(*made.values())
        if said and "_C_cuda" in made and not ninja.run(made["_C"]):
            self.cuda = f"not built: {first_error(said)}; `CBAM_FUSED_CUDA=1 pip install -v .` shows all of it"
            if nvcc.wanted() == "1":
                raise RuntimeError("CBAM_FUSED_CUDA=1, but the CUDA kernels do not compile: see above")
            del made["_C_cuda"]
        elif said:
            raise RuntimeError("the CPU kernels do not compile: see above")
        return made

    def binding(self, *options: str) -> list[str]:
        """The command for BINDING."""
        only = [f"-DCBAM_NATIVE={list(self.isas)[-1]}"] if self.native else []
        anywhere = flags.isas(platform.machine())["generic"]  # it chooses the kernels, so it must run on any processor
        return self.compiler.compile([*only, *anywhere, *self._of_torch(), *self.sanitize, *options])

    def cuda_binding(self, *options: str) -> list[str]:
        """The command for CUDA_BINDING; options are for the C++ compiler that nvcc calls."""
        built_for = f'-DCBAM_ARCHITECTURES="{" ".join(self.architectures)}"'
        return self._nvcc(["-std=c++20", "-DUSE_CUDA", built_for], [*HOST, *self._of_torch(), *options])

    def _of_torch(self) -> list[str]:
        # torch's checks print their source file: this makes it the name in torch, not the path on this machine.
        include = self.torch.folder / "include"
        return [*flags.BINDING, "-isystem", str(include), f"-ffile-prefix-map={include}{os.sep}="]

    def _cpu(self, ninja: Ninja) -> Path:
        quiet = [] if self.compiler.is_clang else flags.QUIET_GCC
        version = self.compiler.version
        binding = ninja.compile(BINDING, self.binding(), f"{version} {self.torch.version}")
        kernels = [
            ninja.compile(
                source,
                self.compiler.compile([*flags.KERNELS, *own, *quiet, *self.sanitize]),
                version,
                after=[binding],
            )
            for isa, own in self.isas.items()
            for source in flags.sources(isa)
        ]
        libraries = [f"-L{self.torch.folder / 'lib'}", "-ltorch_cpu"]
        command = self.compiler.link(self.sanitize or ["-s"])
        return ninja.link("_C", command, [*kernels, binding], libraries, version)

    def _cuda(self, ninja: Ninja) -> Path:
        version = f"{self.compiler.version} nvcc {nvcc.nvcc_version(self.nvcc)}"
        binding = ninja.compile(CUDA_BINDING, self.cuda_binding(), f"{version} {self.torch.version}")
        command = self._nvcc(["-std=c++17", *nvcc.code_options(self.architectures)], HOST)
        kernels = [ninja.compile(source, command, version, after=[binding]) for source in cuda_sources()]
        # libtorch_cuda provides PyTorch's current stream; from torch 2.13 on the stable ABI has it.
        # No device code is relocatable; linking it would record the build folder.
        link = ["-shared", "-nodlink", "-cudart=static"]
        command = self._nvcc(link, ["-s", f"-L{self.torch.folder / 'lib'}"])
        return ninja.link("_C_cuda", command, [*kernels, binding], ["-ltorch_cuda", "-ltorch_cpu"], version)

    def _nvcc(self, options: list[str], host: list[str]) -> list[str]:
        """A command of nvcc; host: options for the C++ compiler that it calls."""
        # Quoted, since nvcc splits these options at spaces and commas.
        passed = [f'-Xcompiler="{option}"' for option in host]
        first = [self.nvcc, f"-ccbin={self.compiler.program}", *nvcc.user_flags()]
        return [*first, "-O3", *nvcc.EXACT, *passed, *options]


def cuda_sources() -> list[str]:
    """Those for nvcc first, which take longer, and of them those of half types, which have the most kernels."""
    kernels, launchers = (sorted(Path("csrc/cuda").rglob(f"*.{suffix}")) for suffix in ("cu", "cpp"))
    return [str(source) for source in [*sorted(kernels, key=lambda each: "16" not in each.stem), *launchers]]
