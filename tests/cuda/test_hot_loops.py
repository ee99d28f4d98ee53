"""What the inner loops of the CUDA kernels issue: instructions an element in machine code, at most so many."""

from functools import cache
from pathlib import Path

import pytest
from cuda_targets import loops_of, missing_tools
from hot_loops import Moves, per_element

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {missing_tools()}")

# Of the kernels with a choice for the maxima: the place of one.
ITEMS = {
    "fwd_pool": ("1",),
    "fwd_maps": ("false",),
    "fwd_apply": (),
    "bwd_products": (),
    "bwd_maps": ("false",),
    "bwd_input": ("false",),
}
NCHW, NHWC = "false", "true"
TYPES = {"__nv_bfloat16": (8, "bf16"), "__half": (8, "f16"), "float": (4, "f32")}  # elements of 16 bytes


def items(word: int) -> list[tuple]:
    """Loop, kernel, layout, what a turn of 4 words moves, and the limits for half types and for float32.

    What belongs to the columns of a word are 4 bytes each, what belongs to 4 rows is one access. In dx, nvcc keeps what
    belongs to the first 4 columns in registers.
    """
    of_columns = word // 4
    return [
        ("pool along", "fwd_pool", NCHW, Moves(4), 4.5, 4.0),
        ("pool across", "fwd_pool", NHWC, Moves(4), 6.5, 5.5),
        ("gated pool along", "fwd_maps", NHWC, Moves(4, 0, of_columns), 5.25, 5.25),
        ("gated pool across", "fwd_maps", NCHW, Moves(4, 0, 1), 6.5, 5.5),
        *(
            row
            for layout in (NCHW, NHWC)
            for row in (
                ("apply", "fwd_apply", layout, Moves(4, 4, 1), 5.5, 6.5),
                ("apply, residual", "fwd_apply", layout, Moves(8, 4, 1), 7.0, 7.5),
                ("products", "bwd_products", layout, Moves(8, 0, 1), 7.5, 8.0),
                ("products behind a ReLU", "bwd_products", layout, Moves(12, 4, 1), 10.0, 12.5),
                ("dx", "bwd_input", layout, Moves(4, 4, 2 * of_columns), 5.5, 5.0),
            )
        ),
        ("map products along", "bwd_maps", NCHW, Moves(4, 0, of_columns), 3.5, 2.5),
        ("map products across", "bwd_maps", NHWC, Moves(4, 0, 1), 3.5, 2.5),
    ]


# In SASS of 8.0 these take a little more: comparisons of halves have no masks as results there.
OF_8_0 = {"products": 8.0, "products behind a ReLU": 12.5}


def on_chip(word: int) -> list[tuple]:
    """The same of the on-chip schedule; there x and dy are in shared memory, and map products are part of dg."""
    of_columns = word // 4
    # Half types take 8 bytes at a time in the sums along rows of dg, for want of registers.
    narrow = Moves(0, 0, 2, 8) if word == 8 else Moves(0, 0, 10)
    return [
        ("pools", "fwd", NCHW, Moves(0, 0, 4), 6.5, 6.5),  # along, and gated across
        ("pool across", "fwd", NHWC, Moves(0, 0, 4), 6.5, 5.5),
        ("gated pool along", "fwd", NHWC, Moves(0, 0, 4 + of_columns), 5.25, 5.5),
        ("products across", "bwd", NCHW, Moves(0, 0, 8), 7.5, 7.5),
        ("products along", "bwd", NHWC, Moves(0, 0, 8 + of_columns), 7.5, 7.5),
        ("dg along", "bwd", NCHW, narrow, 7.5, 7.5),
        ("dg across", "bwd", NHWC, Moves(0, 0, 8), 7.5, 7.5),
        *(
            row
            for layout in (NCHW, NHWC)
            for row in (
                ("apply", "fwd", layout, Moves(0, 4, 4), 5.5, 7.0),
                ("dx", "bwd", layout, Moves(0, 4, 4), 5.5, 5.5),
            )
        ),
    ]


@cache
def loops_in(target: str, source: str) -> dict:
    return loops_of(target, Path("csrc/cuda", source))


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
@pytest.mark.parametrize("element", TYPES)
def test_loops_of_the_items_are_lean(element, target):
    word, name = TYPES[element]
    loops = loops_in(target, f"items/items_{name}.cu")
    for loop, kernel, layout, moves, of_half, of_float in items(word):
        limit = of_half if word == 8 else of_float
        if target == "sm_80":
            limit = max(limit, OF_8_0.get(loop, 0))
        of_kernel = loops[f"cbam_{kernel}_kernel", (element, str(word), layout, *ITEMS[kernel])]
        found = per_element(of_kernel, moves, 4 * word)
        assert found and max(found) <= limit, (loop, layout, found, of_kernel)


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
@pytest.mark.parametrize("element", TYPES)
def test_loops_on_chip_are_lean(element, target):
    word, _ = TYPES[element]
    loops = loops_in(target, "on_chip/forward.cu") | loops_in(target, "on_chip/backward.cu")
    for loop, way, layout, moves, of_half, of_float in on_chip(word):
        elements = 4 * word // (2 if moves.shared_8 else 1)
        of_kernel = loops[f"cbam_{way}_on_chip_kernel", (element, layout)]
        found = per_element(of_kernel, moves, elements)
        assert found and max(found) <= (of_half if word == 8 else of_float), (loop, layout, found, of_kernel)


# The maximum by a comparison of every element, and NaN by another one: the pool as it was.
SLOW = """
#include <cuda_bf16.h>
template <class T> __global__ void __launch_bounds__(256, 3) 
    pool(const T* x, int words, float* sums, float* tops, int* at) {
    float sum[4] = {}, top[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    int places[4] = {};
#pragma unroll 1
    for (int i = threadIdx.x; i < words; i += 32) {
        uint4 bits[4];
#pragma unroll
        for (int row = 0; row < 4; ++row) bits[row] = reinterpret_cast<const uint4*>(x)[row * words + i];
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            T v[8];
            memcpy(v, &bits[row], 16);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float f = float(v[j]);
                sum[row] += f;
                const bool better = !(f <= top[row]) && top[row] == top[row];
                top[row] = better ? f : top[row];
                places[row] = better ? i * 8 + j : places[row];
            }
        }
    }
    for (int row = 0; row < 4; ++row) {
        sums[row * 32 + threadIdx.x] = sum[row];
        tops[row * 32 + threadIdx.x] = top[row];
        at[row * 32 + threadIdx.x] = places[row];
    }
}
template __global__ void pool<__nv_bfloat16>(const __nv_bfloat16*, int, float*, float*, int*);
"""


def test_a_loop_that_compares_every_element_is_not_lean(tmp_path):
    source = tmp_path / "slow.cu"
    source.write_text(SLOW)
    ((_, loops),) = loops_of("sm_90", source, tmp_path).items()
    (found,) = per_element(loops, Moves(4), 32)
    assert 7 < found < 12
