"""Random models behave the same before and after replace_cbam: outputs, gradients, random numbers, calls."""

import collections
import functools
import random

import family
import pytest
import torch
from choice import ALL

from cbam_fused import replace_cbam

SEEDS = range(300)


@functools.cache
def seeds() -> list[int]:
    """So many that each part of a model is in two of them, or in one if no other has it; all in make test-all."""
    if ALL:
        return list(SEEDS)
    chosen, times = [], collections.Counter()
    for seed in SEEDS:
        parts = list(enumerate(family.draw(seed).parts))
        if any(times[part] < 2 for part in parts):
            chosen.append(seed)
            times.update(parts)
    return chosen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(10))
def test_no_silent_difference(first):
    wrong = {}
    for seed in seeds()[first::10]:
        wanted = family.observe(family.draw(seed), seed)
        drawn = family.draw(seed)
        random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), torch.get_rng_state().tolist(), [*family.LOG], family.Counting.calls
        replace_cbam(drawn.model)
        if (random.getstate(), torch.get_rng_state().tolist(), [*family.LOG], family.Counting.calls) != before:
            wrong[seed] = drawn.parts, "replace_cbam itself has side effects"
            continue
        if found := family.differences(family.observe(drawn, seed), wanted):
            wrong[seed] = drawn.parts, found[0]
    assert not wrong


@pytest.mark.filterwarnings("ignore")
def test_the_family_is_not_left_alone_altogether():
    """Plain models are replaced, and callers are fused."""
    counts = collections.Counter()
    for seed in SEEDS[:150]:
        drawn = family.draw(seed)
        plain = (
            drawn.parts[0] in ("Channel", "LinearChannel")
            and drawn.parts[1] in ("Spatial", "max first")
            and not drawn.parts[3]
        )
        if plain and drawn.parts[2] in ("Whole", "Caller"):
            report = replace_cbam(drawn.model)
            # Masks with different ties cannot be one call.
            one = drawn.parts[0] == "Channel"
            whole = drawn.parts[2] == "Whole" and one
            assert report.replaced.keys() == ({"1"} if whole else {"1.ca", "1.sa"}), drawn.parts
            assert report.fused == ({"1": [("ca", "sa")]} if one and not whole else {}), (drawn.parts, report)
            counts[drawn.parts[2], one] += 1
    assert counts["Whole", True] > 1 and counts["Caller", True] > 0
