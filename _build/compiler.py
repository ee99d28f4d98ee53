"""The C++ compiler of a build, with the user's flags, as in setuptools and make."""

import os
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import flags

LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")  # may precede the compiler in CXX


@dataclass(frozen=True)
class Compiler:
    """version: the first line of --version."""

    command: list[str]
    version: str

    @property
    def program(self) -> str:
        """The compiler without launchers, for nvcc."""
        return next(word for word in self.command if Path(word).name not in LAUNCHERS)

    @property
    def is_clang(self) -> bool:
        return "clang" in self.version

    def compile(self, ours: list[str]) -> list[str]:
        user = [*_words("CPPFLAGS"), *_words("CXXFLAGS")]
        return [*self.command, "-fPIC", "-DNDEBUG", "-Wall", *user, *flags.COMMON, *ours]

    def link(self, ours: list[str]) -> list[str]:
        """The link command before the objects."""
        library = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        user = [*_words("CXXFLAGS"), *_words("LDFLAGS")]
        return [*self.command, *library, *user, *flags.LINK, *self._without_start_code(), *ours]

    def macros(self) -> str:
        """The macros that it defines on this machine with -march=native."""
        return self._run("-march=native", "-dM", "-E", "-x", "c++", os.devnull)

    def _without_start_code(self) -> list[str]:
        # gcc 13's flag against start code that flushes denormals to zero.
        word = "-mno-daz-ftz"
        try:
            self._run(word, "-E", "-x", "c++", os.devnull)
        except subprocess.CalledProcessError:
            return []
        return [word]

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=True).stdout


def find() -> Compiler:
    """The compiler in CXX, else the one that Python was built with, else g++.

    Raises:
        RuntimeError: it does not run, or this is Windows.
    """
    if sys.platform == "win32":
        raise RuntimeError("the kernels need GCC or Clang on Linux or macOS")
    command = _words("CXX") or shlex.split(sysconfig.get_config_var("CXX") or "g++")
    try:
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"no C++ compiler: `{command[0]} --version` failed ({error}); "
            "install one (on Debian: apt install g++) or name it in CXX"
        ) from error
    return Compiler(command, answer.stdout.splitlines()[0])


def _words(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))
