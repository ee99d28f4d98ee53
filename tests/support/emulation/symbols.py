"""Names of the source for places in a compiled module, by addr2line."""

import functools
import subprocess
from pathlib import Path

INCLUDE = Path(__file__).parent / "include"


@functools.cache
def _frames(module: str, offset: int) -> list[tuple[str, str]]:
    """Function and file:line at an offset in the module; the innermost first, where functions were inlined."""
    command = ["addr2line", "-Cfi", "-e", module, hex(offset)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return list(zip(lines[::2], lines[1::2], strict=True))


def source_lines(module: str, behind: int) -> str:
    """Where the instruction before this one comes from: file:line, and for an inlined function where it is called."""
    places = [Path(place.split(" ")[0]) for _, place in _frames(module, behind - 1)]
    return ", called at ".join(place.name for place in places if not place.is_relative_to(INCLUDE))


def function_name(module: str, offset: int) -> str:
    """Without namespaces, template arguments and parameters."""
    name = _frames(module, offset)[-1][0].replace("(anonymous namespace)::", "")
    return name.split("(")[0].split("<")[0].split(" ")[-1].split("::")[-1]
