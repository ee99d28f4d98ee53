"""Builds the kernels. pyproject.toml has the machine-independent settings, _build runs the compilers."""

import json
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, "_build")  # as in the backend, for running setup.py directly
from build_kernels import Kernels

# Free-threaded Python has no limited API.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
OPTIONS = {"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {}
TEMPORARY = tempfile.TemporaryDirectory(prefix="cbam_fused-")
OBJECTS = Path("build", "objects")
if not os.access(".", os.W_OK):  # setuptools also writes beside the sources
    OPTIONS["egg_info"] = {"egg_base": TEMPORARY.name}
    OBJECTS = Path(TEMPORARY.name, "objects")


class Build(build):
    def initialize_options(self):
        super().initialize_options()
        # A new folder, so a wheel has no files of an earlier build.
        self.build_base = TEMPORARY.name


class BuildKernels(build_ext):
    def run(self):
        try:
            self.kernels = Kernels()
            self.made = self.kernels.build(OBJECTS)
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            raise CompileError(str(error)) from error
        self.extensions = [ext for ext in self.extensions if ext.name.rpartition(".")[2] in self.made]
        super().run()
        folder = Path("" if self.inplace else self.build_lib, "cbam_fused")
        if "_C_cuda" not in self.made:
            for stale in folder.glob("_C_cuda.*so"):  # an earlier build's library would be loaded
                stale.unlink()
        info = {
            "version": self.distribution.get_version(),
            "torch": self.kernels.torch.version,
            "compiler": self.kernels.compiler.version,
            "cpu": list(self.kernels.isas),
            "cuda": self.kernels.cuda,
        }
        (folder / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")
        print(f"cbam_fused: CUDA kernels {self.kernels.cuda}")

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")  # a process may have loaded the old one
        shutil.copyfile(self.made[ext.name.rpartition(".")[2]], unfinished)
        unfinished.replace(target)


setup(
    ext_modules=[Extension(f"cbam_fused.{name}", [], py_limited_api=LIMITED_API) for name in ("_C", "_C_cuda")],
    cmdclass={"build": Build, "build_ext": BuildKernels},
    options=OPTIONS,
)
