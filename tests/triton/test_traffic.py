"""Bytes and sectors of each Triton kernel against its formula; and proofs that the checker sees what is wrong."""

import importlib.util
from itertools import product
from pathlib import Path

import doc_tables
import generate_triton
import pytest
import torch
import triton
import triton.language as tl
from choice import in_turn
from gates import FUNCTIONS, SWITCHES, switched
from triton.runtime.errors import InterpreterError
from triton_traffic import LARGE, formulas
from truth import DTYPES, LAYOUTS, random_problem

from cbam_fused import functional
from cbam_fused.ops import registry
from cbam_fused.tensors import saved_logits
from cbam_fused.variants.config import EVEN, Switches

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


# The dtype is the size of an element alone, whatever the launches are.
COUNTED = in_turn(
    list(product(LAYOUTS, (False, True), (False, True))), [(torch.float32,), (torch.float64,), (torch.bfloat16,)]
)


@pytest.mark.parametrize("layout,even,epilogue,dtype", COUNTED)
def test_counted_bytes_equal_the_formulas(epilogue, even, dtype, layout, checker):
    """With a 1 x 1 window, so that no pixel's neighbour is read twice: every byte of every kernel."""
    shape = (2, 32, 8, 16)
    problem = random_problem(shape, dtype, layout, kernel_size=1, biases=True, residual=epilogue, relu=epilogue)
    params = [problem.inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    x, residual, dy = problem.inputs["x"], problem.inputs["residual"], problem.dy
    run, code = registry.operators["triton"], EVEN if even else 0
    counted = {}

    def count(operator, *args):
        checker.traffic.clear()
        result = getattr(run, operator)(*args)
        counted[operator] = {
            kernel: {argument: (t.loaded, t.stored) for argument, t in arguments.items()}
            for kernel, arguments in checker.traffic.items()
        }
        return result

    with torch.no_grad():
        y, saved, index = count("forward", x, *params, residual, epilogue, code)
        count("backward", dy, x, y if epilogue else None, saved, index, *params, code)
        saved, index = count("gates_forward", x, *params, code)
        s = saved_logits(saved, x).sigmoid()
        y = count("apply_gates", x, saved, s, residual, epilogue, code)
        dg, ds, masked = count("gate_grads", dy, x, y if epilogue else None, saved, s, code)
        masked = masked if epilogue else dy
        count("backward_from_gate_grads", masked, s, dg, ds, x, saved, index, *params, code)
    expected = formulas(shape, 4, dtype, layout == torch.channels_last, epilogue, even)
    assert counted.keys() == expected.keys()
    for operator, traffic in expected.items():
        assert counted[operator].keys() == traffic.keys(), operator
        for kernel, arguments in traffic.items():
            assert counted[operator][kernel] == arguments, (operator, kernel)


def passes(problem, checker):
    """How often each kernel reads and writes the arguments of x's size."""
    x = problem.inputs["x"].numel() * problem.dy.element_size()
    counted = {
        kernel: {a: (t.loaded / x, t.stored / x) for a, t in arguments.items() if a in LARGE}
        for kernel, arguments in checker.traffic.items()
    }
    return {kernel: arguments for kernel, arguments in counted.items() if arguments}


@layouts
@pytest.mark.parametrize("shape", [(2, 16, 16, 16), (1, 33, 5, 7), (1, 300, 40, 9)], ids=str)
def test_three_reads_and_a_write_then_two_and_two_and_a_write(shape, layout, checker):
    """With the 7 x 7 window, at any size: what of x's size crosses slow memory."""
    problem = random_problem(shape, torch.float32, layout)
    problem.run(functional.cbam)
    assert passes(problem, checker) == {
        "cbam_fwd_channel_pool": {"x": (1, 0)},
        "cbam_fwd_spatial_pool": {"x": (1, 0)},
        "cbam_fwd_apply": {"x": (1, 0), "y": (0, 1)},
        "cbam_bwd_products": {"x": (1, 0), "dy": (1, 0)},
        "cbam_bwd_map_products": {"x": (1, 0)},
        "cbam_bwd_input": {"dy": (1, 0), "dx": (0, 1)},
    }


POOL_C, POOL_P = {"cbam_fwd_channel_pool": {"x": (1, 0)}}, {"cbam_fwd_spatial_pool": {"x": (1, 0)}}
APPLY = {"cbam_fwd_apply": {"x": (1, 0), "y": (0, 1)}}
PRODUCTS = {"cbam_bwd_products": {"x": (1, 0), "dy": (1, 0)}}
THROUGH_MAPS = {"cbam_bwd_map_products": {"x": (1, 0)}}
DX, DX_OF_A_MASK = {"cbam_bwd_input": {"dy": (1, 0), "dx": (0, 1)}}, {"cbam_bwd_input": {"dx": (0, 1)}}


@layouts
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("channel", POOL_C | APPLY | PRODUCTS | DX),
        ("spatial", POOL_P | APPLY | PRODUCTS | DX),
        ("channel mask", POOL_C | DX_OF_A_MASK),
        ("spatial mask", POOL_P | DX_OF_A_MASK),
        ("both, norm", POOL_C | POOL_P | APPLY | PRODUCTS | THROUGH_MAPS | DX),
        ("spatial, norm", POOL_P | APPLY | PRODUCTS | DX),
    ],
)
def test_an_absent_gate_is_not_read_for(name, expected, layout, checker):
    draw, calls = FUNCTIONS[name]
    problem = draw((1, 33, 5, 7), torch.float32, layout)
    problem.run(calls["first"][0])
    assert passes(problem, checker) == expected


DX_EVEN, DX_EVEN_OF_A_MASK = ({"cbam_bwd_input": d["cbam_bwd_input"] | {"x": (1, 0)}} for d in (DX, DX_OF_A_MASK))


@layouts
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("both", POOL_C | POOL_P | APPLY | PRODUCTS | THROUGH_MAPS | DX_EVEN),
        ("both, norm", POOL_C | POOL_P | APPLY | PRODUCTS | THROUGH_MAPS | DX_EVEN),
        ("channel", POOL_C | APPLY | PRODUCTS | DX_EVEN),
        ("spatial, norm", POOL_P | APPLY | PRODUCTS | DX_EVEN),
        ("spatial mask", POOL_P | DX_EVEN_OF_A_MASK),
    ],
)
def test_even_ties_cost_one_read_of_x(name, expected, layout, checker):
    draw, calls = FUNCTIONS[name]
    problem = draw((1, 33, 5, 7), torch.float32, layout)
    problem.run(calls["even"][0])
    assert passes(problem, checker) == expected


@layouts
@pytest.mark.parametrize("name", [name for name in SWITCHES if "avg" in SWITCHES[name].get("pools", ())])
@pytest.mark.parametrize("ties", ["first", "even"])
def test_squeeze_and_excitation_reads_x_twice_and_has_no_maxima(ties, name, layout, checker):
    draw, (fused, _) = switched("channel", Switches(ties=ties, **SWITCHES[name]))
    problem = draw((2, 16, 8, 8), torch.float32, layout)
    problem.run(fused)
    assert passes(problem, checker) == POOL_C | APPLY | PRODUCTS | DX
    assert not {"maxima", "argmax"} & checker.traffic["cbam_fwd_channel_pool"].keys()
    assert not any("index" in arguments for arguments in checker.traffic.values())
    C, R = 16, 0 if "effective" in name else 4
    assert checker.traffic["cbam_fwd_channel_gate"]["saved"].stored == 2 * (2 * C + R) * 4, "mean, g and hidden"
    assert checker.traffic["cbam_bwd_channel_gate"]["dpools"].stored == 2 * C * 4


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sectors_are_used_in_full_on_aligned_shapes(dtype, layout, checker):
    random_problem((1, 64, 8, 16), dtype, layout, residual=True, relu=True).run(functional.cbam)
    for kernel, arguments in checker.traffic.items():
        for name in arguments.keys() & LARGE:
            assert arguments[name].efficiency() >= 0.95, (kernel, name, arguments[name])


def test_the_documented_table_is_what_is_counted(checker):
    rows = generate_triton.kernel_rows({layout: generate_triton.watch(layout) for layout in generate_triton.LAYOUTS})
    page = doc_tables.current("design/triton.md")["traffic"]
    assert len(rows) == 20
    assert page.splitlines()[2:] == doc_tables.table([], rows).splitlines()[2:], "run tools/docs/generate_triton.py"


def mutant(module: str, old: str, new: str, folder: Path):
    """A kernel file of the package with one text in place of another."""
    from cbam_fused import triton as package

    source = (Path(package.__file__).parent / f"{module}.py").read_text()
    assert source.count(old) == 1, f"{old!r} must be there once"
    path = folder / f"{module}_mutant.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.{module}_mutant", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


MUTANTS = {
    "a load without its mask": (
        "forward",
        "value = tl.load(x + offsets(c, p, C, P, CHANNELS_LAST), inside, 0).to(ACC)\n        if sums",
        "value = tl.load(x + offsets(c, p, C, P, CHANNELS_LAST)).to(ACC)\n        if sums",
        "cbam_fwd_channel_pool, program .*: load outside of its tensor",
    ),
    "a load whose mask lacks the channels": (
        "backward",
        "product = tl.load(x + at, inside, 0)",
        "product = tl.load(x + at, (p < P)[None, :], 0)",
        "cbam_bwd_products, program .*: load outside of its tensor",
    ),
    "a store without its mask": (
        "forward",
        "tl.store(y + at, value.to(y.dtype.element_ty), inside)",
        "tl.store(y + at, value.to(y.dtype.element_ty))",
        "cbam_fwd_apply, program 0: two lanes write one address of y",
    ),
    "every run of channels stores s": (
        "forward",
        "(p < P) & (split == 0)",
        "p < P",
        "cbam_fwd_apply, program 1: a second store to one address of saved",
    ),
    "every row of tiles stores db2": (
        "gradients",
        "(c < C) & (program < columns)",
        "c < C",
        "cbam_bwd_parameters, program .*: a second store to one address of db2",
    ),
    "no neighbour is outside": (
        "common",
        "inside = (h >= 0) & (h < H) & (w >= 0) & (w < W) & ",
        "inside = ",
        "outside of its tensor",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_checker_catches(name, checker, tmp_path, monkeypatch):
    from cbam_fused.triton import convolution_backward, forward, launch

    module, old, new, message = MUTANTS[name]
    wrong = mutant(module, old, new, tmp_path)
    if module == "common":
        for user in (forward, convolution_backward):
            monkeypatch.setattr(user, "neighbours", wrong.neighbours)
    else:
        monkeypatch.setattr(launch, module, wrong)
    problem = random_problem((1, 1050, 3, 5), torch.float32, hidden=20, biases=True)
    with pytest.raises(InterpreterError, match=message):
        problem.run(functional.cbam)


@triton.jit
def read_back(t, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(t + i, i)
    tl.store(t + BLOCK + i, tl.load(t + BLOCK - 1 - i))


@triton.jit
def pass_on(t, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(t + i, tl.load(t + i + BLOCK))


@triton.jit
def collide(t, BLOCK: tl.constexpr):
    tl.store(t + tl.arange(0, BLOCK) // 2, 1)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (read_back, "load from t, which this launch writes"),
        (pass_on, "store to t where another program of this launch has read"),
        (collide, "two lanes write one address of t"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_checker_catches_races(kernel, message, checker):
    with pytest.raises(InterpreterError, match=message):
        kernel[(2,)](torch.zeros(24, dtype=torch.int32), BLOCK=8)
