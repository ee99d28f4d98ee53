"""Runs compilers with ninja, which reuses their results.

The name of a result depends on its command, so a build reuses results of earlier builds of this checkout.
"""

import fcntl
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# Environment variables that a compilation depends on.
ENVIRONMENT = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")


class Ninja:
    """Collects compilations and links, each of which returns the path of its result, and runs them.

    Args:
        folder: for the results.
        jobs: number of parallel compilers.
        hidden: environment variables hidden from the compilers.

    Raises:
        ModuleNotFoundError: the Python package ninja is not installed.
    """

    def __init__(self, folder: Path, jobs: int, hidden: Sequence[str] = ()):
        from ninja import ninja_syntax

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.jobs, self.syntax = folder, jobs, ninja_syntax
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.edges: list[dict] = []

    def compile(self, source: str, command: list[str], toolchain: str, after: Sequence[Path] = ()) -> Path:
        """The object of a source.

        Args:
            toolchain: further dependencies, such as the compiler's version.
            after: results to compile first, because they fail sooner.
        """
        output = self._output(Path(source).stem, ".o", [*command, source], toolchain)
        # The list of all files read; gcc, clang and nvcc use the same format.
        depfile = ["-MD", "-MF", f"{output}.d"]
        self._add("compile", output, [source], [*command, *depfile, "-c", source, "-o", str(output)], after)
        return output

    def link(self, name: str, command: list[str], objects: list[Path], libraries: list[str], toolchain: str) -> Path:
        parts = [*map(str, objects), *libraries]
        output = self._output(name, ".so", [*command, *parts], toolchain)
        self._add("link", output, objects, [*command, *parts, "-o", str(output)])
        return output

    def run(self, *targets: Path) -> str:
        """Build these; return the compilers' output on failure, else an empty string."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.folder / "build.ninja"
            self._write(file)
            command = [sys.executable, "-m", "ninja", "-f", str(file), f"-j{self.jobs}", *map(str, targets)]
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            process = subprocess.Popen(command, env=self.environment, **pipe)
            said = []
            for line in process.stdout:
                print(line, end="", flush=True)
                said.append(line)
            return ("".join(said) or "ninja failed") if process.wait() else ""

    def _output(self, stem: str, suffix: str, command: list[str], toolchain: str) -> Path:
        environment = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
        facts = "\0".join([*command, toolchain, *platform.libc_ver(), *environment])
        return self.folder / f"{stem}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}{suffix}"

    def _add(self, rule: str, output: Path, inputs: Iterable, command: list[str], after: Iterable[Path] = ()) -> None:
        self.edges.append(
            {
                "outputs": str(output),
                "rule": rule,
                "inputs": [str(each) for each in inputs],
                "order_only": [str(each) for each in after],
                "variables": {"command": self.syntax.escape(shlex.join(command)), "what": f"{rule} {output.name}"},
            }
        )

    def _write(self, file: Path) -> None:
        with file.open("w") as stream:
            writer = self.syntax.Writer(stream, width=1 << 20)  # a smaller width breaks lines within quotes
            writer.variable("builddir", self.syntax.escape_path(str(self.folder)))
            # The dependency lists stay in files: ninja's own record forgets results outside the current build.
            writer.rule("compile", "$command", description="$what", depfile="$out.d")
            writer.rule("link", "$command", description="$what")
            for edge in self.edges:
                writer.build(**edge)


def first_error(said: str) -> str:
    """The first error in a log."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(?:error|fatal)\b", line, re.IGNORECASE)]
    return (errors or [line for line in lines if line.startswith("FAILED")] or lines)[0]
