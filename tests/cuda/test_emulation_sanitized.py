"""The CUDA kernels, emulated, under AddressSanitizer and UndefinedBehaviorSanitizer, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import build

# To compile the emulation with the sanitizers takes a minute; what they look for, make test-all asks.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)]

WRONG = """
import torch
from emulation import build
toys = build.load("toys", "sanitized")
x = torch.zeros(512)
buffers = toys.add_buffer("x", x.nbytes, x.data_ptr(), False), toys.add_buffer("y", x.nbytes, 0, True)
toys.{name}(*buffers, 512, {wrong})
"""


def sanitized(*arguments: str) -> subprocess.CompletedProcess:
    """Python with GCC's runtimes, which must be there before it is; what it never frees is no error."""
    libraries = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in libraries]
    environment = os.environ | {
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "CBAM_EMULATION_MODE": "sanitized",
        "PYTHONPATH": os.pathsep.join(["tests/support", "."]),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("file", "tests"),
    [("test_staged.py", "test_sizes and not several or test_options"), ("test_on_chip.py", "test_clusters")],
)
def test_kernels(file, tests):
    result = sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path("tests/cuda", file)), "-k", tests)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["next_element", "next_in_shared"])
def test_what_is_read_beyond_the_end(name):
    assert sanitized("-c", WRONG.format(name=name, wrong=False)).returncode == 0
    result = sanitized("-c", WRONG.format(name=name, wrong=True))
    assert result.returncode != 0
    assert f"{name}_kernel" in result.stderr and "AddressSanitizer" in result.stderr
