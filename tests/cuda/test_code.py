"""What nvcc makes of the CUDA kernels, for GPUs that need not be here: no spills, wide accesses, blocks that fit."""

from functools import cache
from pathlib import Path

import doc_tables
import generate_cuda
import pytest
from cuda_targets import REGISTERS, TARGETS, compile_all, compile_one, missing_tools, run

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {missing_tools()}")

# How many loads and stores of 16 bytes a kernel has at least, by its tensors of x's size.
WIDE = {
    "cbam_fwd_pool_kernel": (1, 0),
    "cbam_fwd_maps_kernel": (1, 0),
    "cbam_fwd_apply_kernel": (2, 1),
    "cbam_fwd_dataflow_kernel": (4, 1),
    "cbam_bwd_products_kernel": (3, 1),
    "cbam_bwd_maps_kernel": (1, 0),
    "cbam_bwd_input_kernel": (1, 1),
    "cbam_bwd_dataflow_kernel": (5, 2),
    "cbam_fwd_on_chip_kernel": (2, 1),
    "cbam_bwd_on_chip_kernel": (3, 4),  # half types have 3 where dx is stored by 8 bytes
}
# Blocks that shall be on a multiprocessor at a time. A block of 256 threads in the large passes asks for 4 rows of 16
# bytes a thread, 16 KB: two of them cover the 15 KB or so that are in flight at the bandwidth of an H100 (3.35 TB/s,
# 600 ns, 132 multiprocessors). That shared memory allows as many, test_emulation_staged.py checks.
BLOCKS = {
    "cbam_fwd_pool_kernel": 3,
    "cbam_fwd_maps_kernel": 3,
    "cbam_fwd_apply_kernel": 3,
    "cbam_bwd_products_kernel": 3,
    "cbam_bwd_maps_kernel": 3,
    "cbam_bwd_input_kernel": 3,
}
# Of float64, which takes two registers a number. The MLP is no large pass.
BLOCKS_OF_DOUBLE = BLOCKS | {"cbam_bwd_maps_kernel": 2, "cbam_bwd_input_kernel": 2, "cbam_bwd_mlp_kernel": 1}
# A dataflow kernel has the items of every kind in one loop. What the compiler keeps from one item to the next it may
# put on the stack: so many bytes. Of shared memory it has the ticket.
DATAFLOW_STACK, DATAFLOW_STATIC = 96, 128
WITHOUT_CLUSTERS = ("sm_75", "sm_80")
SIZES = {"double": 8, "float": 4, "__half": 2, "__nv_bfloat16": 2}


# Two cores compile the kernels of a target in a minute. make test takes one target with clusters and one without.
targets = pytest.mark.parametrize(
    "target", [pytest.param(t, marks=[pytest.mark.slow] * (t not in ("sm_80", "sm_90"))) for t in TARGETS]
)


@cache
def compiled(target):
    return compile_all([target])[target]


def is_wide(kernel) -> bool:
    """Whether this variant is the one for tensors whose rows are aligned to 16 bytes; dataflow is from sm_90 on."""
    element, argument = kernel.arguments[:2]
    if "dataflow" in kernel.name and kernel.target in WITHOUT_CLUSTERS:
        return False
    return "on_chip" in kernel.name or int(argument) * SIZES[element] == 16


@targets
def test_every_kernel_compiles_well(target):
    for kernel in compiled(target):
        dataflow = "dataflow" in kernel.name
        if dataflow:
            assert kernel.stack <= DATAFLOW_STACK, kernel
        else:
            assert kernel.stack == kernel.local == kernel.local_accesses == 0, kernel
        system = 0 if target in WITHOUT_CLUSTERS else 1024
        assert kernel.static <= system + (DATAFLOW_STATIC if dataflow else 0), kernel
        blocks = BLOCKS_OF_DOUBLE if kernel.arguments[0] == "double" else BLOCKS
        assert kernel.blocks() >= blocks.get(kernel.name, 2), kernel


@targets
def test_large_passes_move_16_bytes_at_a_time(target):
    wide = [k for k in compiled(target) if k.name in WIDE and is_wide(k)]
    without = {name for name in WIDE if "dataflow" in name and target in WITHOUT_CLUSTERS}
    assert {k.name for k in wide} == WIDE.keys() - without
    for kernel in wide:
        loads, stores = WIDE[kernel.name]
        assert kernel.wide_loads >= loads and kernel.wide_stores >= stores, kernel


# The kernels of each source, by element type, elements of an access, and whether channels come last; some also by what
# is asked of the maxima.
ITEMS = {
    "cbam_fwd_pool_kernel": ("0", "1", "2"),
    "cbam_fwd_maps_kernel": ("false", "true"),
    "cbam_fwd_apply_kernel": (),
    "cbam_fwd_dataflow_kernel": (),
    "cbam_bwd_products_kernel": (),
    "cbam_bwd_maps_kernel": ("false", "true"),
    "cbam_bwd_input_kernel": ("false", "true"),
    "cbam_bwd_dataflow_kernel": (),
}
TYPES = {
    "f32": ("float", (4, 1)),
    "f64": ("double", (2, 1)),
    "f16": ("__half", (8, 4, 1)),
    "bf16": ("__nv_bfloat16", (8, 4, 1)),
}
ENTRIES = {
    f"items_{dtype}": {
        f"{name}<{element}, {access}, {last}{f', {how}' if how else ''}>"
        for name, hows in ITEMS.items()
        for access in (accesses[: dtype != "f64"] if "dataflow" in name else accesses)
        for last in ("false", "true")
        for how in hows or ("",)
    }
    for dtype, (element, accesses) in TYPES.items()
}
ENTRIES["small"] = {
    f"cbam_{name}_kernel<{acc}>" for name in ("fwd_mlp", "bwd_mlp", "bwd_parameters") for acc in ("float", "double")
}


ENTRIES |= {
    source: {
        f"cbam_{way}_on_chip_kernel<{element}, {last}>"
        for element in ("float", "__half", "__nv_bfloat16")
        for last in ("false", "true")
    }
    for source, way in (("forward", "fwd"), ("backward", "bwd"))
}


@targets
def test_sources_have_these_kernels(target):
    found = {source: set() for source in ENTRIES}
    for kernel in compiled(target):
        found[Path(kernel.source).stem].add(f"{kernel.name}<{', '.join(kernel.arguments)}>")
    assert found == ENTRIES


def test_the_measured_tables_are_current():
    page = doc_tables.current("design/cuda.md")
    known = generate_cuda.measured()
    assert {name: page[name] for name in known} == known, "run tools/docs/generate_cuda.py"


@targets
def test_the_table_of_registers_is_current(target):
    header, _, *rows = (
        line.strip("| ").split(" | ") for line in doc_tables.current("design/cuda.md")["compiled"].splitlines() if line
    )
    shown = {row[0].strip(): row[header.index(target)].strip() for row in rows}
    found = {row[0]: row[-1] for row in generate_cuda.kernel_rows({target: compiled(target)})}
    assert shown.keys() == found.keys(), "run tools/docs/generate_cuda.py"
    if "release 13.0," not in run("nvcc", "--version"):
        pytest.skip("the table has the registers of nvcc 13.0; this is another version, which allocates others")
    assert shown == found, "run tools/docs/generate_cuda.py"


BAD = """
__global__ void __launch_bounds__(512) spills(const float* x, float* y, int n) {
    float kept[64];
    for (int i = 0; i < 64; ++i) kept[i] = x[i * n + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 64; ++i) y[kept[63 - i] > 0 ? i : n] = kept[(i * n) % 64];
}
"""


def test_the_facts_show_what_is_bad(tmp_path):
    Path(tmp_path, "bad.cu").write_text(BAD)
    (kernel,) = compile_one("sm_80", tmp_path / "bad.cu", tmp_path)
    assert (kernel.name, kernel.threads) == ("spills", 512)
    assert kernel.stack >= 256 and kernel.local_accesses > 0
    assert kernel.wide_loads == kernel.wide_stores == 0 and kernel.narrow_stores > 0
    assert kernel.blocks() == REGISTERS // (kernel.registers * 512) < 4
