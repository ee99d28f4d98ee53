"""One gate alone, the masks and BatchNorm by the batch on the Triton kernels, interpreted and watched."""

from functools import partial

import pytest
import torch
from gates import FUNCTIONS
from torch import library, nn
from truth import LAYOUTS, assert_close_to_truth, random_problem

from cbam_fused import functional, reference, routing
from cbam_fused.ops import registry
from cbam_fused.tensors import saved_logits
from cbam_fused.variants.config import NO_CHANNEL, Switches

pytestmark = [
    pytest.mark.usefixtures("checker"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NumPy's, of the interpreter
]
NAMES = [name for name in FUNCTIONS if name != "both"]  # which test_triton_values.py has
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
functions = pytest.mark.parametrize("name", NAMES)


@functions
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes(dtype, layout, name, checker):
    draw, calls = FUNCTIONS[name]
    assert_close_to_truth(draw((2, 9, 4, 5), dtype, layout, biases=True), *calls["first"])
    assert "cbam_bwd_input" in checker.launches


@layouts
def test_several_tiles_and_runs(layout):
    """More pixels than a tile of products has, whose parts join; more channels than a run of apply."""
    draw, calls = FUNCTIONS["both, norm"]
    assert_close_to_truth(draw((1, 260, 9, 17), torch.float32, layout), *calls["first"])


@pytest.mark.parametrize("name", [n for n in NAMES if "mask" not in n])
@layouts
def test_epilogue(layout, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((2, 6, 4, 5), torch.bfloat16, layout, biases=True, residual=True, relu=True)
    assert_close_to_truth(problem, *calls["first"])


@functions
def test_gradcheck(name):
    draw, calls = FUNCTIONS[name]
    problem = draw((2, 3, 2, 2), torch.float64, torch.channels_last, hidden=2, kernel_size=3, biases=True)
    with torch.no_grad():  # no ties, of which finite differences have no derivative
        x = problem.inputs["x"]
        x.copy_(torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))
    names = [n for n, t in problem.inputs.items() if t is not None]
    absent = {n: None for n, t in problem.inputs.items() if t is None}

    def call(*tensors):
        return calls["first"][0](**dict(zip(names, tensors, strict=True)), **absent, relu=False)

    assert torch.autograd.gradcheck(call, [problem.inputs[n] for n in names], fast_mode=True)


@functions
@layouts
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_spread_as_in_the_reference(value, layout, name):
    draw, calls = FUNCTIONS[name]
    problem = draw((2, 6, 3, 5), torch.float32, layout, biases=True, kernel_size=3)
    with torch.no_grad():
        problem.inputs["x"][1, 5, 2, 4] = value
    fused, eager = (problem.run(call) for call in calls["first"])
    for key in eager:
        assert torch.equal(fused[key].isnan(), eager[key].isnan()), key
        assert torch.equal(fused[key].isinf(), eager[key].isinf()), key


@functions
@layouts
def test_groups_change_no_bit(layout, name, request):
    """Nor does a second run: groups of two images against all three at once."""
    draw, calls = FUNCTIONS[name]
    problem = draw((3, 6, 3, 4), torch.float32, layout, biases=True)
    together = problem.run(calls["first"][0])
    request.getfixturevalue("small_groups")
    in_groups = problem.run(calls["first"][0])
    assert all(torch.equal(in_groups[key], together[key]) for key in together)


@pytest.mark.parametrize("name", [n for n in NAMES if "norm" not in n])
def test_empty_batch(name):
    draw, calls = FUNCTIONS[name]
    problem = draw((0, 8, 5, 5), biases=True)
    fused, plain = (problem.run(call) for call in calls["first"])
    for key, expected in plain.items():
        assert fused[key].shape == expected.shape, key
        torch.testing.assert_close(fused[key], expected, equal_nan=True)


@pytest.mark.parametrize("name", ["both", "channel", "spatial"])
def test_saved_is_that_of_the_cpu(name):
    inputs = FUNCTIONS[name][0]((2, 6, 3, 4), biases=True).inputs
    args = [None if t is None else t.detach() for t in (inputs[n] for n in ("x", "w1", "w2", "ws", "b1", "b2", "bs"))]
    (saved, index), expected = (registry.operators[backend].gates_forward(*args, 0) for backend in ("triton", "cpu"))
    torch.testing.assert_close((saved, index), expected)


@pytest.mark.parametrize("name", ["both", "channel", "spatial"])
def test_opcheck(name):
    problem = FUNCTIONS[name][0]((2, 4, 3, 5), torch.float32, torch.channels_last, residual=True, relu=True)
    inputs = {n: None if t is None else t.detach() for n, t in problem.inputs.items()}
    x, params = inputs["x"], [inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    run = registry.operators["triton"]
    saved, index = run.gates_forward(x, *params, 0)
    s, gates = saved_logits(saved, x).sigmoid(), NO_CHANNEL if params[0] is None else 0
    y = run.apply_gates(x, saved, s, inputs["residual"], True, gates)
    dg, ds, masked = run.gate_grads(problem.dy, x, y, saved, s, gates)
    for operator, args in (
        (run.gates_forward, (x, *params, 0)),
        (run.apply_gates, (x, saved, s, inputs["residual"], True, gates)),
        (run.gate_grads, (problem.dy, x, y, saved, s, gates)),
        (run.backward_from_gate_grads, (masked, s, dg, ds, x, saved, index, *params, 0)),
        (run.backward_from_gate_grads, (None, None, None, None, x, saved, index, *params, 0)),
    ):
        library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))


def test_fullgraph():
    problem, fused = random_problem((2, 4, 3, 4), biases=True), partial(functional.cbam, norm=nn.BatchNorm2d(1))
    expected = problem.run(fused)
    got = problem.run(torch.compile(fused, fullgraph=True, backend="aot_eager"))
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_running_statistics_move_as_in_pytorch(checker):
    problem = random_problem((3, 4, 3, 4), torch.float64)
    norms = [nn.BatchNorm2d(1, momentum=None).double() for _ in range(2)]
    for _ in range(2):
        for cbam, norm in zip((functional.cbam, reference.cbam), norms, strict=True):
            cbam(**problem.inputs, norm=norm)
    assert checker.launches.count("cbam_fwd_apply") == 4
    torch.testing.assert_close(norms[0].state_dict(), norms[1].state_dict())


def test_what_is_left_to_the_reference(checker):
    problem = random_problem((1, 4, 3, 4))
    x = torch.empty(1, 1, 1, 1)
    lp = Switches(pools=("lp",))
    assert routing.unserved("triton", x, None, lp, "channel") == "pools=('lp',)"
    assert not routing.unserved("triton", x, None, lp, "spatial")
    assert not routing.unserved("triton", x.expand(2, 2, 2**14, 2**14), None, reference.TUTORIAL)
    assert "2^29" in routing.unserved("triton", x.expand(2, 2, 2**14, 2**14 + 1), None, reference.TUTORIAL)
    assert not routing.unserved("cpu", x.expand(2, 2, 2**14, 2**14 + 1), None, reference.TIES["even"])
    functional.cbam(**problem.inputs, switches=lp)
    assert not checker.launches
