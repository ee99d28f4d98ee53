"""What the Triton kernels compute besides the tutorial's CBAM, interpreted and watched: values and every gradient."""

from itertools import product

import pytest
import torch
from choice import every_pair, in_turn
from gates import CASES, FUNCTIONS, SWITCHES, switched
from torch import library
from truth import DTYPES, LAYOUTS, assert_close_to_truth, random_problem

from cbam_fused import CBAM, VARIANTS, functional, reference
from cbam_fused.ops import registry
from cbam_fused.tensors import row_sizes
from cbam_fused.variants.config import EVEN, Switches

pytestmark = [
    pytest.mark.usefixtures("checker"),
    # NumPy's, of the interpreter.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),
]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
TIES = ("first", "even")
every_tie = pytest.mark.parametrize("ties", TIES)
cases = pytest.mark.parametrize("gates,name", CASES)
EVEN_GATES = [name for name in FUNCTIONS if name != "both"]


def problem_and_functions(gates, name, ties, *args, **options):
    draw, functions = switched(gates, Switches(ties=ties, **SWITCHES.get(name, {})))
    return draw(*args, **options), functions


def turn(*of) -> int:
    """A number by which tests take turns among options, the same in every process."""
    return sum(map(ord, "".join(map(str, of))))


@pytest.mark.parametrize("gates,name,ties,layout", in_turn(CASES, [(t, v) for t in ("first", "even") for v in LAYOUTS]))
def test_values(layout, ties, gates, name, checker):
    """Each in one of the dtypes; the loops over pixels and channels depend on it as those of the tutorial do."""
    dtype = DTYPES[turn(layout, ties, gates, name) % 4]
    problem, functions = problem_and_functions(gates, name, ties, (2, 9, 4, 5), dtype, layout, biases=True)
    assert_close_to_truth(problem, *functions)
    assert "cbam_bwd_input" in checker.launches


@pytest.mark.parametrize("gates", ["both", *EVEN_GATES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@layouts
def test_even_ties(layout, dtype, gates, checker):
    problem, functions = problem_and_functions(gates, "tutorial", "even", (2, 9, 4, 5), dtype, layout, biases=True)
    assert_close_to_truth(problem, *functions)
    assert "cbam_bwd_input" in checker.launches


SIZES = [((2, 5, 1, 1),), ((1, 1, 1, 1),), ((3, 1, 4, 3),), ((1, 3, 1, 19),)]


@pytest.mark.parametrize("name,shape", in_turn([(name,) for name in SWITCHES], SIZES), ids=str)
def test_sizes(shape, name):
    ties, layout = ("first", "even")[turn(shape, name) % 2], LAYOUTS[turn(shape, name) // 2 % 2]
    problem, functions = problem_and_functions("both", name, ties, shape, torch.float32, layout, hidden=3, biases=True)
    assert_close_to_truth(problem, *functions)


# The loops over tiles and runs depend on the shape and the layout; what is in them on the gates and on the ties.
LOOPS = list(product([(1, 2, 70, 61), (1, 68, 18, 17)], LAYOUTS))


@pytest.mark.parametrize("loops,gates,ties", every_pair(LOOPS, ["both", "channel mask", "spatial, norm"], TIES))
def test_several_tiles_and_runs(loops, gates, ties):
    shape, layout = loops
    name = "se" if ties == "first" else "tutorial"
    problem, functions = problem_and_functions(gates, name, ties, shape, torch.float32, layout)
    assert_close_to_truth(problem, *functions)


@pytest.mark.parametrize("name", [name for name, s in SWITCHES.items() if s.get("width") == "single"])
def test_a_single_layer_of_several_programs(name, checker):
    problem, functions = problem_and_functions("channel", name, "first", (2, 260, 3, 3), biases=True)
    assert_close_to_truth(problem, *functions)
    traffic = checker.traffic["cbam_fwd_channel_gate"]
    assert traffic["b1"].loaded == 0 and traffic["b2"].loaded == traffic["b2"].distinct * 2 == 260 * 4 * 2
    pool = traffic["sums"] if traffic["sums"].loaded else traffic["maxima"]
    assert pool.loaded == 5 * pool.distinct, "each of five programs joins all pools"


@pytest.mark.parametrize("gates,name", [c for c in CASES if "mask" not in c[0]])
def test_epilogue(gates, name):
    layout, options = LAYOUTS[turn(gates, name) % 2], {"residual": True, "relu": True, "params": torch.float32}
    ties = ("first", "even")[turn(gates, name) // 2 % 2]
    problem, functions = problem_and_functions(gates, name, ties, (2, 6, 4, 5), torch.bfloat16, layout, **options)
    assert_close_to_truth(problem, *functions)


# No two elements are equal here: what depends on ties test_values has.
@pytest.mark.parametrize("name,ties", in_turn([(name,) for name in SWITCHES], [(ties,) for ties in TIES]))
def test_gradcheck(name, ties):
    options = {"hidden": 2, "kernel_size": 3, "biases": True}
    problem, (fused, _) = problem_and_functions("both", name, ties, (2, 3, 2, 2), torch.float64, LAYOUTS[1], **options)
    with torch.no_grad():  # no ties, of which finite differences have no derivative
        x = problem.inputs["x"]
        x.copy_(torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))
    names = [n for n, t in problem.inputs.items() if t is not None]
    absent = {n: None for n, t in problem.inputs.items() if t is None}

    def call(*tensors):
        return fused(**dict(zip(names, tensors, strict=True)), **absent, relu=False)

    assert torch.autograd.gradcheck(call, [problem.inputs[n] for n in names], fast_mode=True)


TIED = [*(("first", *case) for case in CASES), *(("even", g, "tutorial") for g in ("both", *EVEN_GATES))]
VALUES = [(float("nan"),), (float("inf"),), (-float("inf"),)]


@pytest.mark.parametrize("ties,gates,name,value", in_turn(TIED, VALUES))
def test_nan_and_inf_spread_as_in_the_reference(value, ties, gates, name):
    layout = LAYOUTS[turn(value, ties, gates, name) % 2]
    options = {"biases": True, "kernel_size": 3}
    problem, functions = problem_and_functions(gates, name, ties, (2, 6, 3, 5), torch.float32, layout, **options)
    with torch.no_grad():
        problem.inputs["x"][1, 5, 2, 4] = value
    fused, eager = (problem.run(call) for call in functions)
    for key in eager:
        if key == "dws":
            continue  # whether zeros of the padding times NaN count depends on the algorithm
        # The gradient of g is a sum of two parts, through the maps and not, which may be Inf - Inf.
        alike = torch.isnan if value != value else torch.isfinite
        assert torch.equal(alike(fused[key]), alike(eager[key])), key


@layouts
def test_even_ties_are_all_counted(layout):
    """Of constant data, of ReLU'd data of several tiles and runs, and of nothing but -Inf. Of NaN none is."""
    C, H, W = (260, 26, 20) if layout == torch.channels_last else (66, 58, 40)
    relud = random_problem((1, C, H, W)).inputs["x"].detach()
    with_nan = relud.clone()
    with_nan[0, 3, 4, 5] = float("nan")
    for x in (relud, torch.ones_like(relud), torch.full_like(relud, -float("inf")), with_nan):
        x = x.to(memory_format=layout)
        gates_forward = registry.operators["triton"].gates_forward
        w1, w2, ws = torch.rand(1, C), torch.zeros(C, 1), torch.rand(1, 2, 1, 1)
        _, channels = gates_forward(x, w1, w2, None, None, None, None, EVEN)
        _, pixels = gates_forward(x, None, None, ws, None, None, None, EVEN)
        assert torch.equal(channels[0], (x == x.amax((2, 3), keepdim=True)).sum((2, 3))[0].int())
        assert torch.equal(pixels[0].view(H, W), (x == x.amax(1, keepdim=True)).sum(1)[0].int())


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_even_ties_share_evenly(dtype, layout):
    """With no other gradient than that of the maxima, all elements of constant data get the same."""
    C = 12
    x = torch.ones(1, C, 3, 10, dtype=dtype).to(memory_format=layout).requires_grad_()
    w1, w2 = torch.full((1, C), 1 / C, dtype=dtype), torch.ones(C, 1, dtype=dtype)
    ws = torch.zeros(1, 2, 1, 1, dtype=dtype)
    ws[0, 1] = 1
    y = functional.cbam(x, w1, w2, ws, ties="even")
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.unique().numel() == 1


@cases
def test_groups_change_no_bit(gates, name, request):
    """Nor does a second run: groups of two images against all three at once."""
    layout, ties = LAYOUTS[turn(gates, name) % 2], ("first", "even")[turn(gates, name) // 2 % 2]
    problem, (fused, _) = problem_and_functions(gates, name, ties, (3, 6, 3, 4), torch.float32, layout, biases=True)
    together = problem.run(fused)
    request.getfixturevalue("small_groups")
    in_groups = problem.run(fused)
    assert all(torch.equal(in_groups[key], together[key]) for key in together)


@pytest.mark.parametrize("gates,name", [c for c in CASES if "norm" not in c[0]])
def test_empty_batch(gates, name):
    problem, functions = problem_and_functions(gates, name, "even", (0, 8, 5, 5), biases=True)
    fused, plain = (problem.run(call) for call in functions)
    for key, expected in plain.items():
        assert fused[key].shape == expected.shape, key
        torch.testing.assert_close(fused[key], expected, equal_nan=True)


def operator_arguments(gates, name, ties):
    problem, _ = problem_and_functions(gates, name, ties, (2, 6, 3, 4), biases=True)
    inputs = {n: None if t is None else t.detach() for n, t in problem.inputs.items()}
    if inputs["ws"] is not None:
        inputs["ws"] = inputs["ws"].expand(-1, 2, -1, -1)  # that of one map
    params = [inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    return inputs["x"], params, Switches(ties=ties, **SWITCHES[name]).code


@pytest.mark.parametrize("gates", ["both", "channel", "spatial"])
@pytest.mark.parametrize("name", SWITCHES)
def test_saved_is_that_of_the_cpu(name, gates):
    """Only what there is has room: of squeeze-and-excitation the mean, its gate and its hidden vector, and no index."""
    x, params, code = operator_arguments(gates, name, "first")
    got, expected = (registry.operators[backend].gates_forward(x, *params, code) for backend in ("triton", "cpu"))
    assert (got[0].shape[1], got[1].shape[1]) == row_sizes(x, params[0], params[2], code)
    torch.testing.assert_close(got, expected)


@every_tie
@pytest.mark.parametrize("name", SWITCHES)
def test_opcheck(name, ties):
    x, params, code = operator_arguments("both", name, ties)
    run, tests = registry.operators["triton"], ("test_schema", "test_faketensor")
    library.opcheck(run.forward, (x, *params, x, True, code), test_utils=tests)
    y, saved, index = run.forward(x, *params, x, True, code)
    library.opcheck(run.backward, (x, x, y, saved, index, *params, code), test_utils=tests)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_every_variant_is_served(name, training, checker):
    """As the table of docs/guide/variants.md says, which has what unserved_switches says."""
    torch.manual_seed(0)
    module = CBAM(16, reduction=2, variant=name).train(training)
    x = random_problem((2, 16, 5, 4)).inputs["x"]
    expected = reference.CBAM.forward(module, x)
    assert module.backend_for(x).name == "triton" and not checker.launches
    torch.testing.assert_close(module(x), expected)
    assert checker.launches
