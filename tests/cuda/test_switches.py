"""What the CUDA kernels compute besides the tutorial's CBAM, emulated: values and every gradient."""

from functools import partial
from itertools import product

import pytest
import torch
from emulation import build, driver
from gates import FUNCTIONS, SWITCHES, switched
from truth import DTYPES, LAYOUTS, assert_close_to_truth, random_problem

from cbam_fused import CBAM, functional, reference
from cbam_fused.ops import registry
from cbam_fused.variants.config import Switches
from cbam_fused.variants.table import VARIANTS

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
# The hard sigmoid is the only switch of the spatial gate alone.
CASES = [(g, s) for g in ("both", "channel", "channel mask") for s in SWITCHES]
CASES += [(g, "hard") for g in ("spatial", "spatial mask", "both, norm", "spatial mask, norm")]
CASES += [("both, norm", "mean of pools"), ("both, norm", "se"), ("both, norm", "terms, leaky")]
cases = pytest.mark.parametrize("gates,name", CASES)
STAGED = driver.Plan("staged")
NAMED = SWITCHES | {"ties": {}}


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """Tensors on the CPU go to the CUDA kernels."""
    monkeypatch.setattr("cbam_fused.functional.wanted", "cpu")
    monkeypatch.setitem(registry.operators, "cpu", driver.operators(STAGED))


def problem_and_functions(gates, name, ties, *args, **options):
    draw, functions = switched(gates, Switches(ties=ties, **NAMED[name]))
    return draw(*args, **options), functions


# Of the functions of gates.py, whose ties are even.
EVEN = [(gates, "ties") for gates in FUNCTIONS] + [("both", "se"), ("both", "maximum, gelu"), ("both", "mean of pools")]
EVEN += [("channel", "se"), ("channel", "terms, leaky"), ("both, norm", "hard"), ("both, norm", "se")]
CALLED = [(*case, "first") for case in CASES] + [(*case, "even") for case in EVEN]
called = pytest.mark.parametrize("gates,name,ties", CALLED)
# Where the switches concern the sums alone, a type and a layout for each kind of them; even ties concern every access.
TYPES = [(torch.float32, LAYOUTS[0]), (torch.float64, LAYOUTS[1]), (torch.bfloat16, LAYOUTS[1])]
TYPED = [(*case, *of) for case in CALLED for of in (TYPES if case[2] == "first" else product(DTYPES, LAYOUTS))]


@pytest.mark.parametrize("gates,name,ties,dtype,layout", TYPED)
def test_dtypes(gates, name, ties, dtype, layout):
    problem, functions = problem_and_functions(gates, name, ties, (2, 9, 5, 6), dtype, layout, biases=True)
    assert_close_to_truth(problem, *functions)


# Rows that are aligned for the widest accesses and others; one pixel; several tiles; more channels than a block's MLP.
SIZES = [
    ((3, 16, 8, 8), LAYOUTS[0]),
    ((2, 5, 1, 1), LAYOUTS[0]),
    ((1, 3, 40, 61), LAYOUTS[0]),
    ((1, 3, 40, 61), LAYOUTS[1]),
    ((5, 516, 2, 2), LAYOUTS[1]),
]
# The gradient behind BatchNorm of two numbers is their rounding errors.
SIZED = [(*case, *of) for case in CALLED for of in SIZES if "norm" not in case[0] or of[0][2:] != (1, 1)]


@pytest.mark.parametrize("gates,name,ties,shape,layout", SIZED)
def test_sizes(gates, name, ties, shape, layout):
    problem, functions = problem_and_functions(gates, name, ties, shape, torch.float32, layout)
    assert_close_to_truth(problem, *functions)


@pytest.mark.parametrize("gates,name,ties", [c for c in CALLED if "mask" not in c[0]])
@layouts
def test_epilogue(layout, gates, name, ties):
    options = {"residual": True, "relu": True, "params": torch.float32}
    problem, functions = problem_and_functions(gates, name, ties, (2, 24, 6, 4), torch.bfloat16, layout, **options)
    assert_close_to_truth(problem, *functions)


@called
@pytest.mark.parametrize(
    "value,layout", [(float("nan"), LAYOUTS[0]), (float("inf"), LAYOUTS[1]), (-float("inf"), LAYOUTS[0])]
)
def test_nan_and_inf_spread_as_in_the_reference(value, layout, gates, name, ties):
    problem, functions = problem_and_functions(gates, name, ties, (2, 8, 3, 5), torch.float32, layout, biases=True)
    with torch.no_grad():
        problem.inputs["x"][1, 7, 2, 4] = value
    fused, eager = (problem.run(call) for call in functions)
    for key in eager:
        if key == "dws":
            continue  # whether zeros of the padding times NaN count depends on the algorithm
        assert torch.equal(fused[key].isnan(), eager[key].isnan()), key
        assert torch.equal(fused[key].isinf(), eager[key].isinf()), key


@pytest.mark.parametrize("gates,name,ties", [c for c in CALLED if c[0] == "both"])
@layouts
def test_order_of_threads_does_not_matter(layout, gates, name, ties, monkeypatch):
    problem, (fused, _) = problem_and_functions(gates, name, ties, (3, 8, 4, 6), torch.float32, layout, biases=True)
    results = []
    for seed in (0, 1, 2):
        monkeypatch.setitem(registry.operators, "cpu", driver.operators(STAGED, seed))
        results.append(problem.run(fused))
    for result in results[1:]:
        assert all(torch.equal(result[key], results[0][key]) for key in result)


@pytest.mark.parametrize("gates,name", CASES)
def test_dataflow_has_the_bits_of_the_staged_schedule(gates, name, monkeypatch):
    problem, (fused, _) = problem_and_functions(gates, name, "first", (3, 8, 4, 6), torch.bfloat16, biases=True)
    staged = problem.run(fused)
    monkeypatch.setitem(registry.operators, "cpu", driver.operators(driver.Plan("dataflow", blocks=3)))
    dataflow = problem.run(fused)
    assert all(torch.equal(dataflow[key], staged[key]) for key in staged)


@pytest.mark.parametrize("gates,name,ties", [c for c in CALLED if "norm" not in c[0]])
def test_empty_batch(gates, name, ties):
    problem, functions = problem_and_functions(gates, name, ties, (0, 8, 5, 5), biases=True)
    fused, plain = (problem.run(call) for call in functions)
    for key, expected in plain.items():
        torch.testing.assert_close(fused[key], expected, equal_nan=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_served(name, monkeypatch):
    """As the table of docs/guide/variants.md says, which has what unserved_switches says."""
    torch.manual_seed(0)
    served = []
    kernels = driver.operators(STAGED)
    counted = registry.Operators(*(partial(_counted, served, operator) for operator in kernels))
    monkeypatch.setitem(registry.operators, "cpu", counted)
    module = CBAM(16, reduction=2, variant=name)
    x = random_problem((2, 16, 5, 4)).inputs["x"]
    of = module.switches
    gates = [gate for gate in ("channel", "spatial") if getattr(of, gate)]
    expected = reference.CBAM.forward(module, x)
    torch.testing.assert_close(module(x), expected)
    assert bool(served) == (not functional.unserved_switches(of, *gates))


def _counted(calls, operator, *arguments):
    calls.append(operator)
    return operator(*arguments)


def passes(run) -> dict[str, tuple[float, float]]:
    """How often each tensor of x's shape was read and written by a call of the driver."""
    x = run()
    launches = driver.traffic()
    total = {}
    for name in ("x", "y", "dy", "dx"):
        moved = [launch.buffers[name] for launch in launches if name in launch.buffers]
        if moved:
            total[name] = sum(b.read for b in moved) / x.nbytes, sum(b.written for b in moved) / x.nbytes
    return total


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "gates,name,ties",
    [("both", "ties", "even"), ("both", "se", "even"), ("channel", "ties", "even"), ("channel", "se", "first")],
)
def test_bytes(gates, name, ties, dtype, layout):
    """Even ties cost one read of x, where there are maxima; squeeze-and-excitation alone moves x twice forward.

    test_emulation_staged.py has those of the first of equal maxima.
    """
    switches = Switches(ties=ties, **NAMED[name])
    problem = random_problem((2, 16, 8, 8), dtype, layout)
    x, *params = (problem.inputs[n] for n in ("x", "w1", "b1", "w2", "b2", "ws", "bs"))
    x = x.detach()
    params = [None if t is None or (i > 3 and gates == "channel") else t.detach() for i, t in enumerate(params)]
    saved = []

    def forward():
        saved.extend(driver.forward(x, *params, None, False, switches.code, plan=STAGED)[1:])
        return x

    def backward():
        driver.backward(problem.dy, x, None, *saved, *params, switches.code, plan=STAGED)
        return x

    alone = gates == "channel"
    assert passes(forward) == {"x": (2 if alone else 3, 0), "y": (0, 1)}
    extra = ties == "even" and not (alone and name == "se")
    assert passes(backward) == {"x": ((1 if alone else 2) + extra, 0), "dy": (2, 0), "dx": (0, 1)}
