"""The loops of a kernel in the text of nvdisasm, and what one turn of each executes and moves.

A turn's instructions over the elements that it handles are the instructions an element: what the loop must issue, not a
time.
"""

import re
from typing import NamedTuple


class Moves(NamedTuple):
    """Accesses of a turn: of 16 bytes of global memory, of 16 and of 8 bytes of shared memory."""

    loads: int = 0
    stores: int = 0
    shared: int = 0
    shared_8: int = 0


class Loop(NamedTuple):
    instructions: int
    moves: Moves


def hot_loops(text: str) -> list[Loop]:
    """Of one kernel those with accesses, without barriers, and without loops inside that have accesses, too.

    A loop is what lies between a branch backwards and its target.
    """
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(instruction[1])
    spans = [
        (labels[target[1]], i)
        for i, instruction in enumerate(code)
        if (target := re.search(r"\bBRA\b.*`\((\.L_\w+)\)", instruction)) and labels.get(target[1], i + 1) < i
    ]
    bodies = {span: code[span[0] : span[1] + 1] for span in spans}
    hot = {
        span: Loop(len(body), moves)
        for span, body in bodies.items()
        if any(moves := Moves(*(_count(body, *kind) for kind in KINDS))) and not _count(body, "BAR", "")
    }
    return [
        loop
        for span, loop in hot.items()
        if not any(span != inner and span[0] <= inner[0] and inner[1] <= span[1] for inner in hot)
    ]


KINDS = ("LDG", ".128"), ("STG", ".128"), ("LDS", ".128"), ("LDS", ".64")


def _count(body: list[str], operation: str, width: str) -> int:
    return sum(bool(re.search(rf"(?:^|\s){operation}(?:\.\w+)*?{re.escape(width)}(?:\.\w+)*\s", line)) for line in body)


def per_element(loops: list[Loop], moves: Moves, elements: int) -> list[float]:
    """Instructions an element of the loops that move so much for so many elements, or a multiple or a part of it.

    Of an unrolled loop and the one for what it leaves, the former. Empty if there is no such loop.
    """
    found: dict[float, list[float]] = {}
    for loop in loops:
        times = {mine / wanted for mine, wanted in zip(loop.moves, moves, strict=True) if wanted}
        if len(times) == 1 and all(bool(a) == bool(b) for a, b in zip(loop.moves, moves, strict=True)):
            (turns,) = times
            found.setdefault(turns, []).append(loop.instructions / (turns * elements))
    return found[max(found)] if found else []
