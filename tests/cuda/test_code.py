"""What nvcc makes of the CUDA kernels, for GPUs that need not be here: no spills, wide accesses, blocks that fit."""

from pathlib import Path

import doc_tables
import generate_cuda
import pytest
from cuda_targets import REGISTERS, SOURCES, TARGETS, compile_all, compile_one, missing_tools, ptx_entries, run

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {missing_tools()}")

# How many loads and stores of 16 bytes a kernel has at least, by its tensors of x's size.
WIDE = {
    "reduce_along": (1, 0),
    "reduce_across": (1, 0),
    "scale": (2, 1),
    "products": (3, 1),
    "input_gradient": (1, 1),
    "on_chip_forward_kernel": (2, 1),
    "on_chip_backward_kernel": (3, 4),  # half types have 3 where dx is stored by 8 bytes
}
# Blocks that shall be on a multiprocessor at a time. A block of 256 threads in the large passes asks for 4 rows of 16
# bytes a thread, 16 KB: two of them cover the 15 KB or so that are in flight at the bandwidth of an H100 (3.35 TB/s,
# 600 ns, 132 multiprocessors). That shared memory allows as many, test_emulation_staged.py checks.
BLOCKS = {"reduce_along": 3, "reduce_across": 3}
SIZES = {"double": 8, "float": 4, "__half": 2, "__nv_bfloat16": 2}


@pytest.fixture(scope="module")
def compiled():
    return compile_all()


def is_wide(kernel) -> bool:
    """Whether this variant is the one for tensors whose rows are aligned to 16 bytes; clusters are from sm_90 on."""
    element, argument = kernel.arguments[:2]
    if kernel.name.startswith("on_chip"):
        return not (kernel.target == "sm_80" and kernel.arguments[2] == "true")
    return int(argument) * SIZES[element] == 16


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_well(target, compiled):
    kernels = compiled[target]
    assert {k.name for k in kernels} >= WIDE.keys() and len(kernels) == len(compiled["sm_90"])
    for kernel in kernels:
        assert kernel.stack == kernel.local == kernel.local_accesses == 0, kernel
        assert kernel.static <= (0 if target == "sm_80" else 1024), kernel
        assert kernel.blocks() >= BLOCKS.get(kernel.name, 2), kernel


@pytest.mark.parametrize("target", TARGETS)
def test_large_passes_move_16_bytes_at_a_time(target, compiled):
    wide = [k for k in compiled[target] if k.name in WIDE and is_wide(k)]
    assert {k.name for k in wide} == WIDE.keys()
    for kernel in wide:
        loads, stores = WIDE[kernel.name]
        assert kernel.wide_loads >= loads and kernel.wide_stores >= stores, kernel


# The kernels of each source of the staged schedule, by element type, elements of an access, and type of the sums.
STAGED = [
    "reduce_along<{0}, {1}, Pool<{2}>>",
    "reduce_along<{0}, {1}, MapProducts<{2}>>",
    "reduce_across<{0}, {1}, Pool<{2}>>",
    "reduce_across<{0}, {1}, MapProducts<{2}>>",
    "scale<{0}, {1}>",
    "products<{0}, {1}>",
    "input_gradient<{0}, {1}, false>",
    "input_gradient<{0}, {1}, true>",
    "absent_gate<{2}>",
    "join<{2}>",
]
TYPES = {
    "f32": ("float", (4, 1), "float"),
    "f64": ("double", (2, 1), "double"),
    "f16": ("__half", (8, 4, 1), "float"),
    "bf16": ("__nv_bfloat16", (8, 4, 1), "float"),
}
SMALL = {
    "gate": ["hidden_layer<{}>", "channel_gate<{}>", "hidden_backward<{}>", "pools_backward<{}>"],
    "conv": [f"{name}<{k}, {{}}>" for name in ("spatial_gate", "map_gradients", "kernel_gradients") for k in (0, 3, 7)],
    "parameters": ["weight_gradients<{}>", "column_sums<{}>"],
}
ENTRIES = {
    f"staged_{dtype}": {form.format(element, access, acc) for form in STAGED for access in accesses}
    for dtype, (element, accesses, acc) in TYPES.items()
} | {source: {form.format(acc) for form in forms for acc in ("float", "double")} for source, forms in SMALL.items()}


@pytest.mark.parametrize("source", [s for s in SOURCES if not s.stem.startswith("on_chip")], ids=lambda s: s.stem)
def test_staged_schedule_compiles_to_ptx_of_7_5(source):
    assert ptx_entries(source) == ENTRIES[source.stem]


def test_the_page_is_current(compiled):
    page = doc_tables.current("design/cuda.md")
    known = generate_cuda.measured()
    assert {name: page[name] for name in known} == known, "run tools/docs/generate_cuda.py"
    if "release 13.0," in run("nvcc", "--version"):  # another version allocates other registers
        assert page["compiled"] == generate_cuda.compiled_code(compiled), "run tools/docs/generate_cuda.py"


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
    (kernel,) = compile_one("sm_80", tmp_path / "bad.cu")
    assert (kernel.name, kernel.threads) == ("spills", 512)
    assert kernel.stack >= 256 and kernel.local_accesses > 0
    assert kernel.wide_loads == kernel.wide_stores == 0 and kernel.narrow_stores > 0
    assert kernel.blocks() == REGISTERS // (kernel.registers * 512) < 4
