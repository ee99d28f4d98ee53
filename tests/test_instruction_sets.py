"""The numerical tests once more for every instruction set that this processor has but does not prefer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_package import capability_under

HERE = Path(__file__).parent


@pytest.mark.parametrize("limit", ["default", "avx2"])
def test_values_under(limit):
    if capability_under(limit) == capability_under(None):
        pytest.skip(f"{limit} is what this processor uses anyway")
    files = [str(HERE / name) for name in ("test_values.py", "test_semantics.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *files]
    result = subprocess.run(command, env=os.environ | {"ATEN_CPU_CAPABILITY": limit}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
