"""Builds the kernels; what does not depend on the machine is in pyproject.toml."""

import json
import os
import platform
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import environment  # beside the backend, in _build
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

COMMON = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"]
# A target of torch 2.10 keeps to what every torch since then has, whichever the headers are from.
BINDING = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# gcc turns branches into the selects that vectorise only where a comparison may not trap.
KERNELS = ["-fno-math-errno", "-fno-trapping-math"]
F16C = ["-mfma", "-mf16c"]
# generic comes first, since of an inline function in several objects the linker keeps the first: it must run anywhere.
ISAS = {"generic": []}
if platform.machine() == "x86_64":
    ISAS["avx2"] = ["-mavx2", *F16C]
    ISAS["avx512"] = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
    # The warning comes from gcc 12's own AVX-512 headers.
    ISAS["avx512"] += ["-mavx2", *F16C, "-mprefer-vector-width=512", "-Wno-maybe-uninitialized"]
    ISAS["avx512bf16"] = [*ISAS["avx512"], "-mavx512bf16"]

# For make sanitize: every read or write beyond a tensor, and every undefined operation, ends the process.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1"]
if os.environ.get("CBAM_FUSED_SANITIZE") != "1":
    SANITIZE = []

# Compilations at a time; what is no number is passed over, as torch does.
asked = os.environ.get("MAX_JOBS", "")
JOBS = int(asked) if asked.isdigit() and int(asked) else os.cpu_count() or 1
LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")  # that may stand before the compiler in CXX

LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
SOURCES = {isa: f"csrc/cpu/isa/{isa}.cpp" for isa in ISAS}
CPU_EXTENSION = Extension("cbam_fused._C", ["csrc/binding/cpu.cpp", *SOURCES.values()], py_limited_api=LIMITED_API)
CUDA = "cbam_fused._C_cuda"


class Build(build):
    def initialize_options(self):
        super().initialize_options()
        # A fresh folder: a wheel never gets what an earlier build left behind.
        self.fresh = tempfile.TemporaryDirectory(prefix="cbam_fused-")
        self.build_base = self.fresh.name


class BuildKernels(build_ext):
    def finalize_options(self):
        self.torch = environment.find_torch()
        self.nvcc = environment.find_nvcc()
        self.cuda = self._plan_cuda()
        super().finalize_options()

    def run(self):
        if self.torch is None:
            raise CompileError(
                f"building needs {environment.TORCH_REQUIREMENT}, and this environment has none: "
                f'run `pip install "{environment.TORCH_REQUIREMENT}"` first, or leave out --no-build-isolation'
            )
        super().run()
        info = {
            "version": self.distribution.get_version(),
            "torch": self.torch.version,
            "compiler": self.compiler_version,
            "cpu": list(ISAS),
            "cuda": self.cuda,
        }
        folder = Path("" if self.inplace else self.build_lib, "cbam_fused")
        if CUDA not in [extension.name for extension in self.extensions]:
            for stale in folder.glob("_C_cuda.*so"):  # of an earlier build in this folder: it would be loaded
                stale.unlink()
        (folder / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")
        print(f"cbam_fused: CUDA kernels {self.cuda}")

    def build_extension(self, ext):
        # Messages of torch's checks name their source file: as it is called in torch, not where it lies here.
        include = self.torch.folder / "include"
        binding = [*BINDING, f"-I{include}", f"-ffile-prefix-map={include}{os.sep}="]
        if ext.name == CUDA:
            self._build_cuda(ext, binding)
        else:
            self._build_cpu(ext, binding)

    def _build_cpu(self, ext, binding):
        self.compiler_version = self._compiler()
        units = [(SOURCES[isa], [*KERNELS, *flags]) for isa, flags in ISAS.items()]
        units.insert(1, ("csrc/binding/cpu.cpp", binding))
        with ThreadPoolExecutor(JOBS) as pool:
            compiled = pool.map(lambda unit: self._compile(*unit), units)
        self.compiler.link_shared_object(
            [file for files in compiled for file in files],
            self.get_ext_fullpath(ext.name),
            libraries=["torch_cpu"],
            library_dirs=[str(self.torch.folder / "lib")],
            extra_postargs=SANITIZE or ["-s"],
            target_lang="c++",
        )

    def _compile(self, source, flags):
        return self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=[*COMMON, *flags, *SANITIZE])

    def _compiler(self) -> str:
        if self.compiler.compiler_type != "unix":
            raise CompileError("the kernels need GCC or Clang on Linux or macOS")
        command = self.compiler.compiler_cxx
        try:
            answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(
                f"no C++ compiler: `{command[0]} --version` failed ({error}); "
                "install one (on Debian: apt install g++) or name it in CXX"
            ) from error
        return answer.stdout.splitlines()[0]

    def _plan_cuda(self) -> str:
        """Has _C_cuda built beside _C, if it can be; says for which GPUs, or why not."""
        obstacle = environment.cuda_obstacle(self.torch and self.torch.cuda, self.nvcc)
        self.distribution.ext_modules = [CPU_EXTENSION]
        if obstacle:
            return f"not built: {obstacle}"
        try:
            self.architectures = environment.architectures(environment.known_architectures(self.nvcc))
        except ValueError as error:
            raise CompileError(str(error)) from error
        sources = sorted(map(str, [*Path("csrc/cuda").glob("*.cu"), *Path("csrc/cuda").glob("*.cpp")]))
        self.distribution.ext_modules.append(Extension(CUDA, sources, py_limited_api=LIMITED_API))
        return f"built for {', '.join(self.architectures)}"

    def _build_cuda(self, ext, binding):
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)
        host = ["-fPIC", "-fvisibility=hidden"]
        kernels = [*environment.code_options(self.architectures), f"--threads={JOBS}"]
        self._nvcc("-std=c++17", *kernels, "-c", *ext.sources, "-odir", folder, host=host)
        built_for = f'-DCBAM_ARCHITECTURES="{" ".join(self.architectures)}"'
        options = ["-std=c++20", "-DUSE_CUDA", built_for]
        self._nvcc("-c", "csrc/binding/cuda.cpp", "-o", folder / "binding.o", *options, host=[*host, *binding])
        # libtorch_cuda for PyTorch's current stream: from torch 2.13 on the stable ABI has it without.
        libraries = [f"-L{self.torch.folder / 'lib'}", "-ltorch_cuda", "-ltorch_cpu"]
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        # No device code is relocatable, and the linking of such would record the folder that it is done in.
        self._nvcc("-shared", "-nodlink", "-cudart=static", *folder.glob("*.o"), *libraries, "-o", output, host=["-s"])

    def _nvcc(self, *options, host):
        """Runs nvcc, with these options for the C++ compiler that it calls."""
        # Quoted for nvcc, which divides what it passes on at spaces and commas.
        passed = [f'-Xcompiler="{option}"' for option in host]
        compiler = next(word for word in self.compiler.compiler_cxx if Path(word).name not in LAUNCHERS)
        command = [self.nvcc, f"-ccbin={compiler}", "-O3", *passed, *map(str, options)]
        print(" ".join(command))
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(
                f"nvcc failed ({error}); CUDA_HOME set to a folder without nvcc leaves the CUDA kernels out"
            ) from error


setup(
    ext_modules=[CPU_EXTENSION],
    cmdclass={"build": Build, "build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {},
)
