"""Seeds faults of one line, one after the other, and says which of them the tests catch.

    python tools/mutations.py                       # all of tools/faults.py, into docs/results/faults.md
    python tools/mutations.py surgery "CPU kernels" # some parts of it, printed only

It takes an hour or more. What build/faults.jsonl says was caught is not run again: remove that file after a change of
what is tested.

Each fault is put into a worktree of HEAD, and its tests run there, with the kernels that this checkout has; for a fault
of the CPU kernels they are built anew, for this processor alone. Before, the tests must pass without a fault.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "faults.md"
RECORD = ROOT / "build" / "faults.jsonl"
COMPILED = ("csrc/cpu/", "csrc/binding/")


class Broken(Exception):
    """What says nothing of the tests: a fault that is not in the source, or tests that do not run."""


class Worktree:
    """HEAD of this checkout in a folder of its own, with the kernels of this checkout."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "CBAM_FUSED_NATIVE": "1",
            "CBAM_FUSED_CUDA": "0",
        }
        self.environment.pop("CBAM_FUSED_SLOW", None)  # the faults are for make test to catch
        self.kernels = [*(ROOT / "cbam_fused").glob("_C*.so"), ROOT / "cbam_fused" / "_build_info.json"]

    def take_kernels(self) -> None:
        for path in self.kernels:
            shutil.copy(path, self.folder / "cbam_fused")

    def build(self) -> None:
        result = self.run(sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        if result.returncode:
            raise Broken(f"does not compile: {result.stdout[-2000:]}")

    def fail(self, tests: str) -> str:
        """The first test that fails; empty if none does.

        Raises:
            Broken: pytest finds no test, or cannot import one.
        """
        result = self.run(
            sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *shlex.split(tests)
        )
        if result.returncode == 0:
            return ""
        if result.returncode in (2, 3, 4, 5):  # of pytest's own, and not of tests
            raise Broken(f"pytest {tests} ended with {result.returncode}: {result.stdout[-2000:]}")
        failed = re.search(r"^FAILED (\S+)", result.stdout, re.M)
        return failed[1] if failed else f"the process ended with {result.returncode}"

    def run(self, *command: str) -> subprocess.CompletedProcess:
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.run(command, cwd=self.folder, env=self.environment, check=False, **pipe)

    @contextmanager
    def seeded(self, fault: Fault) -> Iterator[None]:
        path = self.folder / fault.file
        text = path.read_text()
        if text.count(fault.old) != 1:
            raise Broken(f"{fault.file} must have this once, but has it {text.count(fault.old)} times: {fault.old}")
        path.write_text(text.replace(fault.old, fault.new))
        try:
            yield
        finally:
            path.write_text(text)


@contextmanager
def worktree() -> Iterator[Worktree]:
    with tempfile.TemporaryDirectory(prefix="cbam_fused-faults-") as temporary:
        folder = Path(temporary, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(folder)], check=True)
        try:
            yield Worktree(folder)
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def seed(tree: Worktree, area: str) -> list[tuple[Fault, str]]:
    """The faults of an area, each with the test that fails, if one does."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    known = {Fault(*fault): failed for fault, failed in map(json.loads, lines)}
    left = [fault for fault in FAULTS[area] if not known.get(fault)]  # those that were missed again, too
    tree.take_kernels()
    for tests in dict.fromkeys(fault.tests for fault in left):
        if failed := tree.fail(tests):
            raise Broken(f"without a fault {failed} fails")
    for fault in left:
        with tree.seeded(fault):
            if fault.file.startswith(COMPILED):
                tree.build()
            known[fault] = failed = tree.fail(fault.tests)
        print(f"{'caught' if failed else 'MISSED'}  {fault.file}: {fault.old}  {failed}", flush=True)
        with RECORD.open("a") as record:
            record.write(json.dumps([fault, failed]) + "\n")
    return [(fault, known[fault]) for fault in FAULTS[area]]


def page(results: dict[str, list[tuple[Fault, str]]]) -> str:
    lines = [
        "# Seeded faults",
        "",
        "Does the test suite catch a fault? `python tools/mutations.py` seeds those of `tools/faults.py`, of one line",
        "each and one after the other, and runs the tests that should fail.",
        "",
        "| part | faults | caught |",
        "|---|---|---|",
    ]
    lines += [f"| {area} | {len(of)} | {sum(bool(failed) for _, failed in of)} |" for area, of in results.items()]
    everything = [each for of in results.values() for each in of]
    lines.append(f"| all | {len(everything)} | {sum(bool(failed) for _, failed in everything)} |")
    for area, of in results.items():
        lines += ["", f"## {area[0].upper()}{area[1:]}", "", "| file | line | fault | first test that fails |"]
        lines.append("|---|---|---|---|")
        for fault, failed in of:
            cells = (fault.file, fault.old, fault.new, failed.split("[")[0] or "none")
            lines.append("| " + " | ".join(f"`` {cell.strip()} ``".replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    wrong = [area for area in sys.argv[1:] if area not in FAULTS]
    if wrong:
        sys.exit(f"areas must be of {', '.join(FAULTS)}, got {', '.join(wrong)}")
    results = {}
    try:
        with worktree() as tree:
            for area in sys.argv[1:] or FAULTS:
                results[area] = seed(tree, area)
    except Broken as broken:
        sys.exit(str(broken))
    missed = sum(not failed for of in results.values() for _, failed in of)
    if not sys.argv[1:]:
        PAGE.write_text(page(results))
    sys.exit(f"{missed} faults were not caught" if missed else 0)


if __name__ == "__main__":
    main()
