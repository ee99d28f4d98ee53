"""The states of the global random generators, which nothing that replace_cbam runs may move."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def states() -> tuple:
    """Those of Python, NumPy where it is loaded, and torch's on the CPU, to be compared."""
    numpy: Any = sys.modules.get("numpy")
    of_numpy = (
        ()
        if numpy is None
        else [getattr(part, "tolist", lambda part=part: part)() for part in numpy.random.get_state()]
    )
    return random.getstate(), of_numpy, torch.get_rng_state().tolist()


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards the generators are where they were."""
    numpy: Any = sys.modules.get("numpy")
    of_python, of_numpy = random.getstate(), None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(of_python)
            if numpy is not None:
                numpy.random.set_state(of_numpy)
