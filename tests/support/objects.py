"""Compiled files, kept under the contents of all that they were made from; the processes of a run share them."""

import fcntl
import hashlib
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def compiled(folder: Path, source: Path, command: list[str], suffix: str) -> Path:
    """What the compiler's command makes of the source, in the folder.

    It runs in ROOT, in one process at a time, and only if what it read the last time has changed since.
    """
    command = [*command, str(source)]
    name = f"{source.stem}-{digest(shlex.join(command).encode())}"
    record = folder / f"{name}.d"  # the compiler's list of what it read
    with locked(folder / f"{name}.lock"):
        if record.exists() and (known := folder / f"{name}-{_contents(record)}{suffix}").exists():
            return known
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made, read = Path(temporary) / "made", Path(temporary) / "read"
            run([*command, "-MMD", "-MF", str(read), "-o", str(made)])
            made.replace(target := folder / f"{name}-{_contents(read)}{suffix}")
            read.replace(record)
    return target


def linked(target: Path, command: list[str]) -> Path:
    """The target, which the linker's command makes; it appears when it is whole."""
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
                made = Path(temporary) / "made"
                run([*command, "-o", str(made)])
                made.replace(target)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        yield


def run(command: list[str]) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"this failed: {shlex.join(command)}\n{result.stderr[:4000]}")


def digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:16]


def _contents(record: Path) -> str:
    names = record.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    files = [ROOT / name for name in names]
    return digest(b"".join(file.read_bytes() if file.exists() else b"" for file in files))
