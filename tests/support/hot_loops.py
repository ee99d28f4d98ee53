"""The loops of a kernel in the text of nvdisasm, and what one turn of each executes and moves.

A turn's instructions over the elements that it handles are the instructions an element: what the loop must issue, not a
time.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """Without loops inside that have accesses, too: those of 16 bytes, of global and of shared memory."""

    instructions: int
    loads: int
    stores: int
    shared_loads: int
    shared_stores: int


def hot_loops(text: str) -> list[Loop]:
    """Of one kernel those with accesses of 16 bytes: from the target of a branch backwards to that branch."""
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
    loops = {span: describe(code[span[0] : span[1] + 1]) for span in spans}
    hot = {span: loop for span, loop in loops.items() if any((loop.loads, loop.stores, loop.shared_loads))}
    return [
        loop
        for span, loop in hot.items()
        if not any(span != inner and span[0] <= inner[0] and inner[1] <= span[1] for inner in hot)
    ]


def describe(body: list[str]) -> Loop:
    def wide(operation: str) -> int:
        return sum(bool(re.search(rf"\b{operation}(\.\w+)*\.128\b", instruction)) for instruction in body)

    return Loop(len(body), wide("LDG"), wide("STG"), wide("LDS"), wide("STS"))


def per_element(loops: list[Loop], size: int, loads: int, stores: int = 0, *, shared: bool = False) -> list[float]:
    """Instructions an element of the loops that, for 16 bytes of elements, make so many loads and stores.

    size: bytes of an element. shared: the loads are those of shared memory.
    """
    found = []
    for loop in loops:
        made = loop.shared_loads if shared else loop.loads
        turns = made // loads if loads else loop.stores // stores
        if turns and (made, loop.stores) == (turns * loads, turns * stores):
            found.append(loop.instructions / (turns * 16 / size))
    return found
