"""Seeds faults of one line, one after the other, and says which of them the tests catch.

    python tools/mutations.py                       # all of tools/faults.py; the results go to docs/results/faults.md
    python tools/mutations.py surgery "CPU kernels" # some parts of it

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


def recorded() -> dict[Fault, str]:
    """Of each fault that was seeded, the test that failed, or an empty text."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    return {Fault(*fault): failed for fault, failed in map(json.loads, lines)}


def seed(tree: Worktree, area: str) -> int:
    """Seeds the faults of an area that have not been caught; how many are missed."""
    known = recorded()
    left = [fault for fault in FAULTS[area] if not known.get(fault)]
    tree.take_kernels()
    for tests in dict.fromkeys(fault.tests for fault in left):
        if failed := tree.fail(tests):
            raise Broken(f"without a fault {failed} fails")
    missed = 0
    for fault in left:
        with tree.seeded(fault):
            if fault.file.startswith(COMPILED):
                tree.build()
            failed = tree.fail(fault.tests)
        missed += not failed
        print(f"{'caught' if failed else 'MISSED'}  {fault.file}: {fault.old}  {failed}", flush=True)
        with RECORD.open("a") as record:
            record.write(json.dumps([fault, failed]) + "\n")
    return missed


def page(known: dict[Fault, str]) -> str:
    lines = [
        "# Seeded faults",
        "",
        "Does the test suite catch a fault? `python tools/mutations.py` seeds those of `tools/faults.py`, of one line",
        "each and one after the other, runs the tests that should fail, and writes this page.",
        "",
        "| part | faults | seeded | caught |",
        "|---|---|---|---|",
    ]
    parts = FAULTS | {"all": [fault for faults in FAULTS.values() for fault in faults]}
    for area, faults in parts.items():
        found = [known[fault] for fault in faults if fault in known]
        lines.append(f"| {area} | {len(faults)} | {len(found)} | {sum(map(bool, found))} |")
    for area, faults in FAULTS.items():
        lines += ["", f"## {area[0].upper()}{area[1:]}"]
        for fault in faults:
            result = known.get(fault, "not seeded yet").split("[")[0] or "no test failed"
            lines += ["", f"`{fault.file}`: {result}", "", "```diff", f"- {fault.old}", f"+ {fault.new}", "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    wrong = [area for area in sys.argv[1:] if area not in FAULTS]
    if wrong:
        sys.exit(f"areas must be of {', '.join(FAULTS)}, got {', '.join(wrong)}")
    missed = 0
    try:
        with worktree() as tree:
            for area in sys.argv[1:] or FAULTS:
                missed += seed(tree, area)
    except Broken as broken:
        sys.exit(str(broken))
    finally:
        PAGE.write_text(page(recorded()))
    sys.exit(f"{missed} faults were not caught" if missed else 0)


if __name__ == "__main__":
    main()
