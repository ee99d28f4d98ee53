"""Seeds derived from the run's seed and a position in the run, so that a run resumes from any position."""

import random

import numpy as np
import torch


def seed_of(*place: int) -> int:
    """A seed for a position such as (seed, epoch, rank, step): well mixed, the same on every machine."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_all(*place: int) -> None:
    """Seed the generators of Python, NumPy and torch, on all devices."""
    seed = seed_of(*place)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
