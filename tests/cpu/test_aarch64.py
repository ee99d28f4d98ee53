"""The baseline kernels compiled for 64-bit ARM and run by qemu: the results equal those of x86-64.

`make test-all` installs the cross-compiler and qemu-user.
"""

import itertools
import platform
import shutil
import subprocess
from pathlib import Path

import flags
import numpy as np
import pytest
from ninja_file import Ninja

ROOT = Path(__file__).parents[2]
CROSS = next((name for name in ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12") if shutil.which(name)), None)
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SYSROOT = Path("/usr/aarch64-linux-gnu")  # of Debian's cross-compilers, for qemu

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with x86-64"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(CROSS is None, reason="needs the cross-compiler aarch64-linux-gnu-g++"),
    pytest.mark.skipif(QEMU is None, reason="needs qemu-aarch64"),
]

# Relative to the largest element; both processors round alike, but gcc chooses the order in which lanes are added.
TOLERANCE = {0: 4e-6, 1: 1e-14, 2: 2e-3, 3: 1.6e-2}
CASES = list(itertools.product(TOLERANCE, (False, True)))
ELEMENTS = 2 * 37 * 13 * 11
PARAMETERS = (5 * 37, 5, 37 * 5, 37, 2 * 49, 1)


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, list[str]]:
    """Commands that run tests/support/run_kernels.cpp, by processor."""
    ninja = Ninja(ROOT / "build" / "aarch64", jobs=2)
    commands = {}
    for machine, compiler in (("x86_64", "g++"), ("aarch64", CROSS)):
        command = [compiler, *flags.COMMON, *flags.KERNELS, *flags.isas(machine)["generic"], *flags.QUIET_GCC]
        version = subprocess.check_output([compiler, "--version"], text=True)
        sources = [*flags.sources("generic"), "tests/support/run_kernels.cpp"]
        objects = [ninja.compile(str(ROOT / source), command, version) for source in sources]
        commands[machine] = [str(ninja.link(f"run_kernels_{machine}", [compiler], objects, [], version))]
    said = ninja.run(*(Path(command[0]) for command in commands.values()))
    assert not said, said
    commands["aarch64"] = [QEMU, "-L", str(SYSROOT), *commands["aarch64"]]
    return commands


def results(command: list[str], dtype: int, channels_last: bool, parts: int) -> bytes:
    return subprocess.check_output([*command, str(dtype), str(int(channels_last)), str(parts)])


def tensors(data: bytes, dtype: int) -> list[np.ndarray]:
    """y, dx, dresidual and the gradients of the parameters, all as float64."""
    of_x = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint16}[dtype]
    found, begin = [], 0
    for count, kind in [(ELEMENTS, of_x)] * 3 + [
        (count, np.float64 if dtype == 1 else np.float32) for count in PARAMETERS
    ]:
        values = np.frombuffer(data, kind, count, begin)
        begin += values.nbytes
        bfloat16 = dtype == 3 and kind == np.uint16
        found.append((values.astype(np.uint32) << 16).view(np.float32) if bfloat16 else values)
    assert begin == len(data)
    return [values.astype(np.float64) for values in found]


@pytest.mark.parametrize(("dtype", "channels_last"), CASES)
def test_arm_computes_what_x86_does(programs, dtype, channels_last):
    expected = tensors(results(programs["x86_64"], dtype, channels_last, 1), dtype)
    got = tensors(results(programs["aarch64"], dtype, channels_last, 1), dtype)
    for a, b in zip(got, expected, strict=True):
        assert np.isfinite(b).all() and b.any()
        assert np.abs(a - b).max() <= TOLERANCE[dtype] * np.abs(b).max()


@pytest.mark.parametrize(("dtype", "channels_last"), CASES)
def test_bits_do_not_depend_on_the_threads(programs, dtype, channels_last):
    one, three = (results(programs["aarch64"], dtype, channels_last, parts) for parts in (1, 3))
    assert one == three
