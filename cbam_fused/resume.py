"""For programs that may be killed at any moment: a record of results, from which they resume, and a time limit."""

import argparse
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMPARED = ("torch", "GPU", "code")


def code() -> str:
    """A hash of the package's Python files and, in a checkout, of the kernels' sources."""
    package = Path(__file__).parent
    files = [path for folder in (package, package.parent / "csrc") for path in folder.rglob("*.*")]
    hashed = hashlib.sha256()
    for path in sorted(p for p in files if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")):
        hashed.update(path.relative_to(package.parent).as_posix().encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


class Record:
    """A JSON object in a file; each save replaces the file atomically.

    Args:
        path: an existing file is continued, unless it is "finished".
        about: facts about this run, as in info.facts().

    Raises:
        SystemExit: the file has other contents, or results of other code, another torch or another GPU.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        about = about | {"code": code()}
        self.path = path
        self.data: dict[str, Any] = {"about": about}
        text = path.read_text() if path.exists() else ""
        if not text:
            return
        try:
            found = json.loads(text)
            earlier = {name: found["about"].get(name) for name in COMPARED}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SystemExit(f"{path} must be a file of earlier results, or not exist") from None
        if found.get("finished"):
            return
        differ = [f"{k}: {earlier[k]} there, {about[k]} here" for k in COMPARED if earlier[k] != about[k]]
        if differ:
            raise SystemExit(f"{path} has other results; remove it or name another file: {', '.join(differ)}")
        self.data = found

    def save(self) -> None:
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(self.data, indent=1) + "\n")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


class _TimeIsUp(BaseException):
    """Not an Exception, since measured code may catch those."""


@contextmanager
def limited(minutes: float | None) -> Iterator[None]:
    """Leave the block silently when the minutes are over; SIGTERM raises SystemExit(143).

    This interrupts any code in the block, so save each result at once.
    """

    def stop(number: int, _: object) -> None:
        raise _TimeIsUp if number == signal.SIGALRM else SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    if minutes is not None:
        signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 5)  # repeats, since a destructor may swallow the exception
    try:
        yield
    except _TimeIsUp:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--minutes and --maps."""
    parser.add_argument("--minutes", type=_positive, help="time limit; the same command resumes")
    text = "CxHxW of the feature maps (default: those of ResNet-18 and -50 at 224 pixels)"
    parser.add_argument("--maps", type=_size, nargs="+", metavar="CxHxW", help=text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def _size(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be CxHxW, such as 64x56x56, got {text}")
    return tuple(int(part) for part in parts)
