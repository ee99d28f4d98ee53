"""What the kernels compute besides the tutorial's CBAM, one switch or a few at a time: values and every gradient.

test_instruction_sets.py runs this file again for each instruction set.

A case is gates and switches. dtype, layout and ties are template arguments of the passes over x, while the switches are
data of what lies between them, but for few: so that every case meets every dtype, every layout and both ties, and each
two of these, but not all three at once. make test-all has the full products.
"""

import pytest
import torch
from choice import every_pair
from gates import CASES, SWITCHES, switched
from truth import DTYPES, LAYOUTS, assert_close_to_truth

from cbam_fused import functional, routing
from cbam_fused.ops import registry
from cbam_fused.tensors import row_sizes
from cbam_fused.variants.config import Switches, decode

TIES = ("first", "even")
SHAPES = [(2, 5, 1, 2), (3, 1, 9, 6), (9, 128, 2, 3), (1, 3, 70, 67), (1, 300, 2, 3), (2, 9, 14, 14)]


def named(value):
    return {LAYOUTS[0]: "nchw", LAYOUTS[1]: "nhwc"}.get(value) if isinstance(value, torch.memory_format) else str(value)


def chosen(names, *axes, cases=CASES):
    return pytest.mark.parametrize(f"case,{names}", every_pair(cases, *axes), ids=named)


def problem_and_functions(case, ties, *args, **options):
    gates, name = case
    draw, functions = switched(gates, Switches(ties=ties, **SWITCHES[name]))
    return draw(*args, **options), functions


@chosen("dtype,layout,ties", DTYPES, LAYOUTS, TIES)
def test_dtypes(case, dtype, layout, ties):
    problem, functions = problem_and_functions(case, ties, (2, 33, 5, 17), dtype, layout, biases=True)
    assert functional.backend_for(problem.inputs["x"]) == "cpu"
    switches = Switches(ties=ties, **SWITCHES[case[1]])
    assert not routing.unserved("cpu", problem.inputs["x"], None, switches, "channel")
    assert_close_to_truth(problem, *functions)


@chosen("shape,layout", SHAPES, LAYOUTS)
def test_one_and_many(case, shape, layout):
    problem, functions = problem_and_functions(case, "first", shape, torch.float32, layout, hidden=64)
    assert_close_to_truth(problem, *functions)


@chosen("layout", LAYOUTS, cases=[c for c in CASES if "mask" not in c[0]])
def test_epilogue(case, layout):
    options = {"residual": True, "relu": True, "params": torch.float32}
    problem, functions = problem_and_functions(case, "first", (2, 24, 6, 11), torch.bfloat16, layout, **options)
    assert_close_to_truth(problem, *functions)


@chosen("layout,ties", LAYOUTS, TIES)
def test_gradcheck(case, layout, ties):
    shape, options = (2, 3, 3, 2), {"hidden": 2, "kernel_size": 3, "biases": True}
    problem, (fused, _) = problem_and_functions(case, ties, shape, torch.float64, layout, **options)
    with torch.no_grad():  # no ties, of which finite differences have no derivative
        x = problem.inputs["x"]
        x.copy_(torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))
    names = [n for n, t in problem.inputs.items() if t is not None]
    absent = {n: None for n, t in problem.inputs.items() if t is None}

    def call(*tensors):
        return fused(**dict(zip(names, tensors, strict=True)), **absent, relu=False)

    assert torch.autograd.gradcheck(call, [problem.inputs[n] for n in names])
    # It is plain PyTorch, with the switches of the code; PyTorch has none of the hard sigmoid.
    if layout is torch.contiguous_format and "hard" not in case[1] and case[1] != "effective se":
        assert torch.autograd.gradgradcheck(call, [problem.inputs[n] for n in names], fast_mode=True)


@chosen("value,layout,ties", [float("nan"), float("inf"), -float("inf")], LAYOUTS, TIES)
def test_nan_and_inf_spread_as_in_the_reference(case, value, layout, ties):
    problem, functions = problem_and_functions(case, ties, (2, 20, 6, 19), torch.float32, layout, biases=True)
    with torch.no_grad():
        problem.inputs["x"][1, 19, 5, 18] = value
    fused, eager = (problem.run(call) for call in functions)
    for key in eager:
        if key == "dws":
            continue  # whether zeros of the padding times NaN count depends on the algorithm
        assert torch.equal(fused[key].isnan(), eager[key].isnan()), key
        assert torch.equal(fused[key].isinf(), eager[key].isinf()), key


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
@pytest.mark.parametrize("gates", ["both", "channel"])
def test_an_infinite_gradient_of_a_gate_that_is_zero(gates, layout):
    """Both terms of it are 0, and 0 times infinity is NaN."""
    case = (gates, "terms, leaky")
    problem, functions = problem_and_functions(case, "first", (2, 8, 3, 5), torch.float32, layout, biases=True)
    with torch.no_grad():
        problem.inputs["x"][1, 7, 2, 4] = float("inf")
    fused, eager = (problem.run(call) for call in functions)
    assert torch.equal(fused["db2"].isnan(), eager["db2"].isnan())


@chosen("layout,ties", LAYOUTS, TIES)
def test_bitwise_reproducible_for_any_number_of_threads(case, layout, ties):
    problem, (fused, _) = problem_and_functions(case, ties, (5, 48, 9, 11), torch.float32, layout, biases=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8, before):
            torch.set_num_threads(threads)
            results.append(problem.run(fused))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[key], results[0][key]) for key in result)


@chosen("layout", LAYOUTS, cases=[c for c in CASES if "norm" not in c[0]])
def test_empty_batch(case, layout):
    problem, functions = problem_and_functions(case, "first", (0, 8, 5, 5), torch.float32, layout, biases=True)
    fused, plain = (problem.run(call) for call in functions)
    for key, expected in plain.items():
        assert fused[key].shape == expected.shape, key
        torch.testing.assert_close(fused[key], expected, equal_nan=True)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("name", SWITCHES)
def test_a_code_is_that_of_the_switches_it_stands_for(name, ties):
    switches = Switches(ties=ties, **SWITCHES[name])
    assert decode(switches.code).code == switches.code
    assert Switches().code == 0 and (switches.code != 0)


def test_what_is_absent_is_not_saved():
    """Of squeeze-and-excitation the forward leaves its mean, its gate and its hidden vector, and no index."""
    N, C, R, H, W = 2, 8, 3, 5, 7
    x, w1, w2, ws = torch.randn(N, C, H, W), torch.randn(R, C), torch.randn(C, R), torch.randn(1, 2, 3, 3)
    forward = registry.operators["cpu"].forward
    sizes = {}
    for gates, weights in {"both": (w1, w2, ws), "channel": (w1, w2, None), "spatial": (None, None, ws)}.items():
        for name in ("se", "tutorial"):
            code = Switches(**SWITCHES.get(name, {})).code
            w1_, w2_, ws_ = weights
            _, saved, index = forward(x, w1_, w2_, ws_, None, None, None, None, False, code)
            assert (saved.shape[1], index.shape[1]) == row_sizes(x, w1_, ws_, code)
            sizes[gates, name] = saved.shape[1], index.shape[1]
    assert sizes["channel", "se"] == (2 * C + R, 0)
    assert sizes["channel", "tutorial"] == (3 * C + 2 * R, C)
    assert sizes["spatial", "tutorial"] == sizes["spatial", "se"] != sizes["both", "se"]
    assert sizes["both", "tutorial"] == (3 * C + 2 * R + 3 * H * W, C + H * W)


WRONG = [
    ({"w1": torch.zeros(4, 8)}, r"w1 must be \(8, 8\) or \(8, 8, 1, 1\) for the 8 channels of x, got \(4, 8\)"),
    ({"w2": torch.zeros(8, 8)}, "w2 must be None with width='single'"),
    ({"b2": torch.zeros(8)}, "b2 must be None with width='single'"),
    ({"ties": "even"}, "ties must be given in switches if these are given, got ties='even'"),
]


@pytest.mark.parametrize("wrong,message", WRONG)
def test_wrong_arguments_of_a_single_layer(wrong, message):
    arguments = {"x": torch.zeros(2, 8, 5, 5), "w1": torch.zeros(8, 8), "w2": None, "ws": None}
    switches = Switches(width="single", pools=("avg",))
    functional.cbam(**arguments, switches=switches)
    with pytest.raises((TypeError, ValueError), match=message):
        functional.cbam(**arguments | wrong, switches=switches)


def test_operators_refuse_a_layer_too_few():
    x, w = torch.zeros(2, 8, 5, 5), torch.zeros(8, 8)
    single = Switches(width="single").code
    for w1, w2, code in ((w, None, 0), (w, w, single), (None, w, 0), (torch.zeros(4, 8), None, single)):
        with pytest.raises(RuntimeError, match="w1"):
            registry.operators["cpu"].gates_forward(x, w1, w2, None, None, None, None, code)
