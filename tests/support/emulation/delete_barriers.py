"""Deletes each barrier, fence, arrive and wait_for of the CUDA kernels in turn, in a copy, and runs the tests, which
must then fail.

python tests/support/emulation/delete_barriers.py [part of a file's name ...]

Prints for each barrier what caught it. The exit status is 1 if nothing did.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
BARRIER = re.compile(
    r"\b(?:__syncthreads|__syncwarp|__threadfence)\([^()]*\)(?=;)"
    r"|[\w:]+(?:\(\))?\.sync\(\)(?=;)"
    r"|\b(?:arrive|wait_for)\((?:[^()]|\([^()]*\))*\)(?=;)"
)
# By what a file's path in csrc/cuda begins with.
SUITES = {
    "on_chip/": "tests/cuda/test_on_chip.py",
    "common/counters": "tests/cuda/test_counters.py",
    "items/dataflow": "tests/cuda/test_dataflow.py",
    "items/even_ties": "tests/cuda/test_switches.py",
    "": "tests/cuda/test_staged.py",
}
PARTS = ("cbam_fused", "csrc", "tests", "pyproject.toml")


def barriers(wanted: list[str]) -> Iterator[tuple[Path, re.Match]]:
    for path in sorted((ROOT / "csrc" / "cuda").rglob("*.cu*")):
        if not wanted or any(part in path.name for part in wanted):
            for match in BARRIER.finditer(path.read_text()):
                yield path.relative_to(ROOT), match


def copy_project(to: Path) -> None:
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, to / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to)
    built = ROOT / "build" / "emulation"
    built.mkdir(parents=True, exist_ok=True)
    (to / "build").mkdir()
    (to / "build" / "emulation").symlink_to(built)


def failure(copy: Path, name: str) -> str:
    """How the tests fail; empty if they pass."""
    suite = next(path for beginning, path in SUITES.items() if name.startswith(beginning))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", suite]
    result = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    if result.returncode == 0:
        return ""
    # A kernel that does not compile, or a test that cannot be collected, shows nothing.
    errors = re.findall(
        r"^.*(?:EmulationError|AssertionError|E +assert |Fatal Python error).*$", result.stdout + result.stderr, re.M
    )
    if result.returncode == 2 or not errors:
        sys.exit(f"{suite} did not run: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    return errors[0]


def main() -> int:
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_project(copy)
        for path, match in barriers(sys.argv[1:]):
            source = (ROOT / path).read_text()
            line = source.count("\n", 0, match.start()) + 1
            (copy / path).write_text(f"{source[: match.start()]}(void)0{source[match.end() :]}")
            caught = failure(copy, str(path.relative_to("csrc/cuda")))
            (copy / path).write_text(source)
            survivors += not caught
            print(f"{path}:{line} {match[0]}: {'caught: ' + caught if caught else 'NOT caught'}", flush=True)
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main())
