"""Installs and tests the package with several versions of Python and torch; prints the table of the wheels page.

    python tools/install_matrix.py 3.10:torch==2.10.0 3.12:torch==2.11.0 3.13:torch

A row is PYTHON:REQUIREMENT[:CUDA_HOME]. In a new environment per row, pip installs first torch and then the package,
from the last commit of this checkout. An environment with a CUDA torch has several gigabytes, so it is deleted before
the next one. Rows are printed at once; the logs stay.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["tests/numerics/test_values.py", "tests/numerics/test_semantics.py", "tests/cpu/test_threads.py"]
NEEDED = ["pytest", "hypothesis"]  # by the tests
HEAD = (
    "| Python | torch | seconds for torch | seconds for cbam_fused | CPU kernels | CUDA kernels | smoke test | tests |"
)


class Failed(Exception):
    pass


class Environment:
    def __init__(self, python: str, folder: Path, log: Path):
        self.folder, self.log = folder, log
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CBAM_FUSED_BACKEND")}
        shutil.rmtree(folder, ignore_errors=True)
        log.write_text("")
        self.run(python, "-m", "venv", str(folder), cwd=folder.parent)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """The output of a command, which is also logged.

        Raises:
            Failed: the command fails.
        """
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            result = subprocess.run(command, cwd=cwd or self.folder, env=self.environment, **options)
            log.write(result.stdout)
        if result.returncode:
            raise Failed(f"`{' '.join(command[:6])}` failed, see {self.log}")
        return result.stdout

    def python(self, *arguments: str, cwd: Path | None = None) -> str:
        return self.run(str(self.folder / "bin" / "python"), *arguments, cwd=cwd)

    def seconds(self, *requirements: str) -> float:
        begin = time.monotonic()
        self.python("-m", "pip", "install", "-v", *requirements)
        return time.monotonic() - begin


def find_python(version: str) -> str:
    """python3.10 on PATH, or from pyenv."""
    known = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = shutil.which(f"python{version}") if not known else str(known[-1])
    if found is None:
        raise SystemExit(f"Python {version} must be on PATH or in pyenv, found in neither")
    return found


def row(text: str, folder: Path) -> str:
    """A line of the table."""
    version, requirement, *cuda_home = text.split(":")
    name = re.sub(r"[^\w.]+", "-", text)
    environment = Environment(find_python(version), folder / name, folder / f"{name}.log")
    try:
        if cuda_home:
            environment.environment["CUDA_HOME"] = cuda_home[0]
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
        torch_seconds = environment.seconds(requirement, "numpy")
        seconds = environment.seconds(f"git+file://{ROOT}@{commit}")
        log = environment.log.read_text()
        warnings = sum(": warning: " in line for line in log.splitlines())
        lines = environment.python("-m", "cbam_fused", "info").splitlines()
        facts = {name: value.strip() for name, value in (line.split(":", 1) for line in lines if ":" in line)}
        smoke = environment.python(str(ROOT / "tools" / "smoke.py")).splitlines()[-1]
        environment.seconds(*NEEDED)
        options = ["-q", "-o", "pythonpath=tests/support tools/docs _build", "-p", "no:cacheprovider"]
        tests = environment.run(str(environment.folder / "bin" / "pytest"), *options, *TESTS, cwd=ROOT).splitlines()[-1]
        cells = [facts["Python"], facts["torch"], f"{torch_seconds:.0f}", f"{seconds:.0f}", facts["CPU kernels"]]
        cells += [facts["CUDA kernels"], smoke.partition(" with")[0], tests.strip("= ").partition(" in ")[0]]
        if warnings:
            cells[3] += f", {warnings} warnings"
    except Failed as reason:
        cells = [version, requirement, str(reason)] + [""] * 5
    finally:
        shutil.rmtree(environment.folder, ignore_errors=True)
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="PYTHON:REQUIREMENT[:CUDA_HOME]")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="default: %(default)s")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    print(re.sub(r"[^|]+", "---", HEAD), flush=True)
    lines = []
    for text in options.rows:
        lines.append(row(text, options.folder.resolve()))
        print(lines[-1], flush=True)
    return any(" failed, see " in line for line in lines)


if __name__ == "__main__":
    sys.exit(main())
