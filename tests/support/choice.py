"""Pairs in the place of full products: most faults need one value of an option, or two that meet."""

import itertools
import os
from collections.abc import Sequence

ALL = os.environ.get("CBAM_FUSED_SLOW") == "1"


def every_pair(cases: Sequence, longest: Sequence, *others: Sequence) -> list[tuple]:
    """Of the product of these, so few that every two values of two of them meet; all of it in make test-all.

    Each case meets each value of the longest axis once; along it the others take turns, another turn for each case.
    """
    if ALL:
        return list(itertools.product(cases, longest, *others))
    chosen = []
    for i, case in enumerate(cases):
        for j, value in enumerate(longest):
            rest, first, second = [], i, j
            for axis in others:
                rest.append(axis[(first + second) % len(axis)])
                first, second = first // len(axis), second // len(axis)
            chosen.append((case, value, *rest))
    axes = (cases, longest, *others)
    for a, b in itertools.combinations(range(len(axes)), 2):
        met = {(axes[a].index(row[a]), axes[b].index(row[b])) for row in chosen}
        assert len(met) == len(axes[a]) * len(axes[b]), f"axes {a} and {b} are too long for a choice of pairs"
    return chosen


def in_turn(cases: Sequence[tuple], values: Sequence[tuple]) -> list[tuple]:
    """Each case with one of the values, which take turns; with all of them in make test-all."""
    if ALL:
        return [(*case, *value) for case in cases for value in values]
    return [(*case, *values[i % len(values)]) for i, case in enumerate(cases)]
