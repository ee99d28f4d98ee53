"""What the numbers alone do not show, on the Triton kernels: ties, NaN, empty batches, strides, groups, determinism."""

import pytest
import torch
from truth import DTYPES, LAYOUTS, NAMES, assert_close_to_truth, assert_equal, random_problem

from cbam_fused import functional, reference
from cbam_fused.ops import registry

# NumPy's, of the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def run_fused(problem):
    return problem.run(functional.cbam)


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_first_index(dtype, layout, checker):
    """With no other gradient than that of the maxima, all of it lands on the first of equal values."""
    N, C, H, W = 1, 12, 3, 10
    x = torch.ones(N, C, H, W, dtype=dtype).to(memory_format=layout).requires_grad_()
    w1, w2 = torch.full((1, C), 1 / C, dtype=dtype), torch.ones(C, 1, dtype=dtype)
    ws = torch.zeros(1, 2, 1, 1, dtype=dtype)
    ws[0, 1] = 1
    y = functional.cbam(x, w1, w2, ws)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    plain = dx[:, 1:, 0, 1:].unique()
    assert plain.numel() == 1, "elements that are no first maximum all have the same gradient"
    assert (dx[:, 0] > plain).all(), "the first channel wins every pixel"
    assert (dx[:, 1:, 0, 0] > plain).all(), "the first pixel wins every channel"


@layouts
def test_tied_maxima_in_different_tiles_go_to_the_first(layout, checker):
    """More pixels than a run of channel_pool, more channels than a tile of spatial_pool."""
    C, H, W = (260, 26, 20) if layout == torch.channels_last else (66, 58, 40)
    x = torch.zeros(1, C, H, W).to(memory_format=layout)
    x[:, :, H // 2 :] = 2
    x[:, C // 2 :, 2, 3] = 5
    w1, w2, ws = torch.rand(1, C), torch.zeros(C, 1), torch.rand(1, 2, 1, 1)
    _, _, index = registry.operators["triton"].forward(x, w1, w2, ws, None, None, None, None, False, 0)
    argmax_hw, argmax_c = index[0, :C], index[0, C:].view(H, W)
    assert (argmax_hw[: C // 2] == H // 2 * W).all() and (argmax_hw[C // 2 :] == 2 * W + 3).all()
    assert argmax_c[2, 3] == C // 2 and (argmax_c.flatten() != 0).sum() == 1


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", [(0, 3, 2, 4), (1, 6, 3, 6), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_spread_as_in_the_reference(value, place, dtype, layout, checker):
    problem = random_problem((2, 7, 4, 7), dtype, layout, biases=True, kernel_size=3)
    with torch.no_grad():
        problem.inputs["x"][place] = value
    fused, eager = run_fused(problem), problem.to(dtype).run(reference.cbam)
    for name in eager:
        assert torch.equal(fused[name].isnan(), eager[name].isnan()), name
        assert torch.equal(fused[name].isinf(), eager[name].isinf()), name
    other = 1 - place[0]
    assert fused["y"][other].isfinite().all() and fused["dx"][other].isfinite().all()


@layouts
def test_nan_wins_the_maxima(layout, checker):
    """A NaN beside a larger number and beside Inf: the first NaN is the maximum."""
    x = torch.rand(1, 20, 3, 21).to(memory_format=layout)
    x[0, 7, 1, 5] = x[0, 9, 1, 5] = x[0, 7, 2, 20] = float("nan")
    x[0, 9, 0, 1] = float("inf")
    args = [random_problem((1, 20, 3, 21)).inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    _, _, index = registry.operators["triton"].forward(x, *args, None, False, 0)
    argmax_hw, argmax_c = index[0, :20], index[0, 20:].view(3, 21)
    assert argmax_hw[7] == 1 * 21 + 5 and argmax_hw[9] == 1 * 21 + 5
    assert not argmax_c.any(), "g is NaN everywhere, so the first product of every pixel is the first NaN"
    assert torch.equal(argmax_hw[:7], x[0, :7].flatten(1).argmax(1).int())


@layouts
def test_maxima_of_nothing_but_minus_infinity(layout, checker):
    x = torch.full((1, 3, 2, 3), -float("inf")).to(memory_format=layout)
    args = [random_problem((1, 3, 2, 3)).inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    _, saved, index = registry.operators["triton"].forward(x, *args, None, False, 0)
    assert (saved[0, 3:6] == -float("inf")).all() and not index[0, :3].any()


@layouts
@pytest.mark.parametrize("relu", [False, True])
def test_empty_batch(relu, layout, checker):
    problem = random_problem((0, 8, 5, 5), torch.float32, layout, biases=True, residual=True, relu=relu)
    result = run_fused(problem)
    assert result["y"].shape == result["dx"].shape == (0, 8, 5, 5)
    assert all(not result[f"d{n}"].any() for n in NAMES[1:7])


VIEWS = {
    "odd offset": lambda: torch.randn(2 * 6 * 5 * 9 + 1)[1:].view(2, 6, 5, 9),
    "sliced": lambda: torch.randn(5, 8, 12, 20)[1:3, :6, 2:7, 3:12],
    "transposed": lambda: torch.randn(2, 6, 9, 5).transpose(2, 3),
    "expanded": lambda: torch.randn(1, 6, 5, 9).expand(2, 6, 5, 9),
    "sliced channels_last": lambda: torch.randn(5, 8, 12, 20).to(memory_format=torch.channels_last)[:2, :6, :5, :9],
}


@pytest.mark.parametrize("view", VIEWS)
def test_strided_inputs_and_gradients(view, checker):
    problem, x = random_problem((2, 6, 5, 9), residual=True, relu=True), VIEWS[view]()
    problem.inputs["x"] = x.requires_grad_()
    problem.inputs["residual"] = x.detach().flip(1).requires_grad_()
    problem.dy = x.detach()
    assert_close_to_truth(problem)


@layouts
def test_layout_is_kept_whatever_the_gradient_has(layout, checker):
    problem = random_problem((2, 6, 5, 9), torch.float32, layout, residual=True, relu=True)
    expected = run_fused(problem)
    problem.dy = problem.dy.contiguous(memory_format=LAYOUTS[1 - LAYOUTS.index(layout)])
    result = run_fused(problem)
    assert_equal(result, expected)
    for name in ("y", "dx", "dresidual"):
        assert result[name].is_contiguous(memory_format=layout), name


def test_parameter_gradients_have_the_parameters_strides(checker):
    problem = random_problem((2, 6, 5, 9), torch.float32, torch.channels_last)
    for name in ("w1", "w2", "ws"):
        t = problem.inputs[name].detach().contiguous(memory_format=torch.channels_last)
        problem.inputs[name] = t.requires_grad_()
    result = run_fused(problem)
    for name in ("w1", "w2", "ws"):
        assert result[f"d{name}"].stride() == problem.inputs[name].stride(), name
    assert_close_to_truth(problem)


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_change_no_bit(dtype, layout, checker, request):
    """Nor does a second run: groups of two images against all three at once."""
    problem = random_problem((3, 6, 4, 5), dtype, layout, biases=True, residual=True, relu=True)
    together = run_fused(problem)
    request.getfixturevalue("small_groups")
    assert_equal(run_fused(problem), together)
    assert checker.launches.count("cbam_fwd_channel_pool") == 1 + 2
    assert checker.launches.count("cbam_bwd_parameters") == 2


@layouts
def test_each_image_on_its_own(layout, checker):
    """The result of an image does not depend on its batch."""
    problem = random_problem((3, 6, 4, 4), torch.float32, layout)
    x, *params = (problem.inputs[n] for n in ("x", "w1", "w2", "ws"))
    together = functional.cbam(x, *params)
    for n in range(3):
        assert torch.equal(functional.cbam(x[n : n + 1], *params)[0], together[n])


def test_four_launches_forward_and_six_backward(checker):
    run_fused(random_problem((2, 6, 4, 5), biases=True, residual=True, relu=True))
    forward, backward = checker.launches[:4], checker.launches[4:]
    assert forward == ["cbam_fwd_channel_pool", "cbam_fwd_channel_gate", "cbam_fwd_spatial_pool", "cbam_fwd_apply"]
    assert backward == [
        "cbam_bwd_products",
        "cbam_bwd_spatial_gate",
        "cbam_bwd_map_products",
        "cbam_bwd_channel_gate",
        "cbam_bwd_input",
        "cbam_bwd_parameters",
    ]


def test_inputs_are_not_written(checker):
    problem = random_problem((2, 6, 5, 9), biases=True, residual=True, relu=True)
    before = {n: t.detach().clone() for n, t in problem.inputs.items()}
    run_fused(problem)
    for name, t in problem.inputs.items():
        assert torch.equal(t, before[name]), name


def test_double_backward_goes_to_the_reference(checker):
    torch.manual_seed(0)
    sizes = ((1, 3, 2, 3), (2, 3), (3, 2), (1, 2, 3, 3))
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradgradcheck(functional.cbam, inputs, fast_mode=True)
    assert "cbam_bwd_products" not in checker.launches


def test_what_the_kernels_do_not_serve_is_an_error_of_the_operators(checker):
    x, w1, w2, ws = (random_problem((1, 3, 2, 3)).inputs[n] for n in ("x", "w1", "w2", "ws"))
    from cbam_fused.triton import operators

    huge = torch.empty(1, 1, 1, 1).expand(1, 2, 2**14, 2**14 + 1)
    with pytest.raises(NotImplementedError, match="at most 2\\^29 elements, got 2 x 16384 x 16385"):
        operators.forward(huge, w1, w2, ws, None, None, None, None, False, 0)
