"""On a machine with a GPU, only the tests marked ``cuda`` find it: see conftest.py."""

import os
import subprocess
import sys

import pytest
import torch

SEES = "import torch; print(torch.cuda.is_available())"


def seen() -> tuple[bool, bool]:
    """Whether PyTorch sees a GPU in this process, and whether the environment hides those of others."""
    return torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES") == ""


@pytest.fixture(scope="module")
def seen_by_fixture() -> tuple[bool, bool]:
    return seen()


def test_without_the_mark(seen_by_fixture):
    assert seen() == seen_by_fixture == (False, True)
    assert subprocess.check_output([sys.executable, "-c", SEES], text=True) == "False\n"


@pytest.mark.cuda
def test_with_the_mark():
    assert seen() == (True, False)
    assert subprocess.check_output([sys.executable, "-c", SEES], text=True) == "True\n"


def test_those_with_the_mark_come_first(request):
    marked = [item.get_closest_marker("cuda") is not None for item in request.session.items]
    assert marked == sorted(marked, reverse=True)
