"""The numerical tests for the other instruction sets of this processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cbam_fused.ops import registry

TESTS = Path(__file__).parents[1]


ORDER = ["default", "avx2", "avx512"]


@pytest.mark.parametrize("limit", ORDER)
def test_numbers_under(limit):
    widest = torch.backends.cpu.get_cpu_capability().lower()
    if widest not in ORDER or ORDER.index(limit) > ORDER.index(widest):
        pytest.skip(f"this processor has no more than {widest}")
    if registry.cpu_capability() in (limit, "generic"):
        pytest.skip(f"{registry.cpu_capability()} is what this run uses anyway")
    numerics = ("values", "gates", "semantics", "random_problems", "kernel_switches")
    files = [f"numerics/test_{name}.py" for name in numerics] + ["cpu/test_split.py"]
    if "CBAM_FUSED_SLOW" not in os.environ:  # the first has each pass of each dtype and layout
        files = files[:1]
    # Second derivatives are plain PyTorch.
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", "not gradcheck"]
    command += [str(TESTS / file) for file in files]
    env = os.environ | {"ATEN_CPU_CAPABILITY": limit}
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    expected = "generic" if limit == "default" else limit
    assert f"CPU kernels, {expected}," in result.stdout, "the run used the instruction set that it was told to"
    assert result.returncode == 0, result.stdout[-3000:]
