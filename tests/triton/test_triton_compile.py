"""The Triton kernels compiled for GPUs that need not be here: no spills, wide loads, shared memory that fits."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from triton_targets import DTYPES, READS, TARGETS, THOROUGH

SUPPORT = Path(__file__).parents[1] / "support"
ROOT = SUPPORT.parents[1]
SMALL = {"cbam_fwd_channel_gate", "cbam_bwd_spatial_gate", "cbam_bwd_channel_gate", "cbam_bwd_parameters"}
# Of which the other operators, single gates and switches have specialisations of their own.
REST = SMALL | READS.keys() | {"cbam_bwd_join"}


def compile_in_a_process(*command):
    """Its JSON. A process in which the kernels are interpreted cannot compile them."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join((str(SUPPORT), str(ROOT)))
    result = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def compiled():
    """What each target needs, compiled side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {target: pool.submit(compile_in_a_process, SUPPORT / "triton_targets.py", target) for target in TARGETS}
    return {target: job.result() for target, job in jobs.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_well(target, compiled):
    kernels = compiled[target]
    common = [k for k in kernels if not k["rest"]]
    dtypes = {str(dtype).removeprefix("torch.") for dtype in DTYPES}
    expected = {(k, d, layout) for k in READS for d in dtypes for layout in ("NCHW", "NHWC")}
    expected |= {(k, d, "any") for k in SMALL for d in ("float32", "float64")}
    assert {(k["kernel"], k["dtype"], k["layout"]) for k in common} == expected
    assert {k["kernel"] for k in kernels if k["rest"]} == (REST if target in THOROUGH else set())
    limit = TARGETS[target].shared - TARGETS[target].reserved
    for kernel in kernels:
        assert kernel["spilled"] == kernel["local"] == 0, kernel
        assert kernel["wide"] >= kernel["needed"], kernel
        assert kernel["shared"] <= limit, kernel
        assert kernel["occupancy"] > 0, kernel
        assert kernel["waits"] == TARGETS[target].pdl, kernel
    assert all(kernel["needed"] > 0 or kernel["kernel"] in SMALL for kernel in common)


SIZES = """
import json, torch
from unittest import mock
import triton_targets as t
target = t.TARGETS["sm_90"]
kernels = set()
for shape, hidden, size in (
    ((1, 1, 1, 1), 1, 1), ((2, 5, 1, 1), 1, 3), ((2, 1, 4, 3), 2, 7), ((3, 33, 5, 7), 5, 9), ((1, 2048, 7, 7), 128, 7)
):
    dtype = torch.float64 if size == 3 else torch.float32
    with mock.patch.multiple(t, SHAPE=shape, HIDDEN=hidden, KERNEL_SIZE=size):
        for kernel, args, kwargs in t.launches(target, dtype, False, options=False, every_operator=size in (1, 3, 9)):
            t.compile_for(target, kernel, args, kwargs)
            kernels.add(kernel.__name__)
print(json.dumps(sorted(kernels)))
"""


def test_the_smallest_and_odd_sizes_compile():
    """Sizes of 1 become constants, and absent tensors branches that are left out, which only the compiler sees."""
    assert set(compile_in_a_process("-c", SIZES)) == REST


WORSE = """
import json, torch
from unittest import mock
import triton_targets as t
target = t.TARGETS["sm_80"]
def facts(**options):
    launches = t.launches(target, torch.float32, False)
    kernel, args, kwargs = next(l for l in launches if l[0].__name__ == "cbam_bwd_products")
    return t.nvidia(t.compile_for(target, kernel, args, kwargs | options))
few = facts(maxnreg=24)
with mock.patch.object(t, "SHAPE", (8, 256, 55, 55)):
    odd = facts()
print(json.dumps([few, odd]))
"""


def test_the_facts_show_spills_and_narrow_loads():
    few_registers, odd_rows = compile_in_a_process("-c", WORSE)
    assert few_registers["spilled"] > 0 and few_registers["local"] > 0
    assert odd_rows["wide"] == 0
