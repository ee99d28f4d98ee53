"""Semantics: ties, NaN and Inf, empty batches, strides, determinism, threads."""

import pytest
import torch
from truth import DTYPES, LAYOUTS, NAMES, assert_close_to_truth, assert_equal, random_problem

from cbam_fused import functional, reference
from cbam_fused.ops import registry

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def run_fused(problem):
    return problem.run(functional.cbam)


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_first_index(dtype, layout):
    """With gradients through the maxima only, all of the gradient goes to the first of tied values."""
    N, C, H, W = 2, 24, 5, 20
    x = torch.ones(N, C, H, W, dtype=dtype).to(memory_format=layout).requires_grad_()
    # Only m reaches g, through w1 > 0, and only M reaches s.
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
def test_all_zero_input(layout):
    problem = random_problem((2, 20, 6, 7), torch.float32, layout, biases=True, scale=0)
    assert not problem.inputs["x"].any()
    assert_close_to_truth(problem)


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", [(0, 3, 2, 5), (1, 19, 5, 18), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_spread_as_in_the_reference(value, place, dtype, layout):
    problem = random_problem((2, 20, 6, 19), dtype, layout, biases=True)
    with torch.no_grad():
        problem.inputs["x"][place] = value
    fused, eager = run_fused(problem), problem.to(dtype).run(reference.cbam)
    for name in eager:
        assert torch.equal(fused[name].isnan(), eager[name].isnan()), name
        assert torch.equal(fused[name].isinf(), eager[name].isinf()), name
    other = 1 - place[0]
    assert fused["y"][other].isfinite().all() and fused["dx"][other].isfinite().all()


@layouts
@pytest.mark.parametrize(
    "dtype,bits,integer",
    [(torch.float32, b, torch.int32) for b in (0x7FC00001, 0x7F800001, 0x7FFFFFFF, -1)]
    + [(torch.bfloat16, b, torch.int16) for b in (0x7F81, 0x7FFF, -1)]
    + [(torch.float16, b, torch.int16) for b in (0x7C01, 0x7FFF, -1)],
)
def test_every_nan_spreads_as_in_the_reference(dtype, bits, integer, layout):
    """For any bits of a NaN: it must not become a number."""
    problem = random_problem((2, 20, 6, 19), dtype, layout, biases=True)
    problem.inputs["x"].detach().view(integer)[0, 3, 2, 5] = bits
    assert problem.inputs["x"][0, 3, 2, 5].isnan()
    fused, eager = run_fused(problem), problem.to(dtype).run(reference.cbam)
    for name in eager:
        assert torch.equal(fused[name].isnan(), eager[name].isnan()), name


@layouts
def test_nan_wins_the_maxima(layout):
    """A NaN beside a larger number: the first NaN is the maximum and gets the gradient."""
    x = torch.rand(1, 20, 3, 21).to(memory_format=layout)
    x[0, 7, 1, 5] = x[0, 9, 1, 5] = x[0, 7, 2, 20] = float("nan")
    problem = random_problem((1, 20, 3, 21), torch.float32, layout)
    args = [problem.inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    _, _, index = registry.operators["cpu"].forward(x, *args, None, False, 0)
    argmax_hw, argmax_c = index[0, :20], index[0, 20:].view(3, 21)
    assert argmax_hw[7] == 1 * 21 + 5 and argmax_hw[9] == 1 * 21 + 5
    assert not argmax_c.any(), "g is NaN everywhere, so the first product of every pixel is the first NaN"
    assert torch.equal(argmax_hw[:7], x[0, :7].flatten(1).argmax(1).int())


@layouts
@pytest.mark.parametrize("relu", [False, True])
def test_empty_batch(relu, layout):
    problem = random_problem((0, 8, 5, 5), torch.float32, layout, biases=True, residual=True, relu=relu)
    result = run_fused(problem)
    assert result["y"].shape == result["dx"].shape == (0, 8, 5, 5)
    assert all(not result[f"d{n}"].any() for n in NAMES[1:7])


def strided_views():
    """Views of shape (2, 6, 5, 9) that are not dense or have an offset."""
    wide = torch.randn(5, 8, 12, 20).relu()
    yield "offset batch", torch.randn(3, 6, 5, 9)[1:]
    yield "odd offset", torch.randn(2 * 6 * 5 * 9 + 1)[1:].view(2, 6, 5, 9)
    yield "sliced channels", wide[:2, 1:7, :5, :9].contiguous()[:, :, :, :].as_strided((2, 6, 5, 9), (270, 45, 9, 1))
    yield "sliced rows and columns", wide[1:3, :6, 2:7, 3:12]
    yield "strided", wide[::4, 2:, ::2, ::2][:2, :, :5, :9]
    yield "transposed", torch.randn(2, 6, 9, 5).transpose(2, 3)
    yield "expanded", torch.randn(1, 6, 5, 9).expand(2, 6, 5, 9)
    yield "sliced channels_last", wide.to(memory_format=torch.channels_last)[:2, :6, :5, :9]


@pytest.mark.parametrize("name,x", list(strided_views()), ids=lambda v: v if isinstance(v, str) else "")
def test_strided_inputs_and_gradients(name, x):
    problem = random_problem((2, 6, *x.shape[2:]), residual=True, relu=True)
    x = x[:, :6]
    dense = x.contiguous()
    for place in ("x", "residual"):
        problem.inputs[place] = dense.clone().requires_grad_()
        expected = run_fused(problem)
        problem.inputs[place] = x.detach().requires_grad_()
        got = run_fused(problem)
        for key in expected:
            torch.testing.assert_close(got[key], expected[key], rtol=1e-5, atol=1e-5)
    problem.dy = dense
    expected = run_fused(problem)
    problem.dy = x
    assert_equal(run_fused(problem), expected)


@layouts
def test_expanded_gradient(layout):
    problem = random_problem((2, 6, 5, 9), torch.float32, layout)
    problem.dy = torch.ones(()).expand(2, 6, 5, 9)
    expanded = run_fused(problem)
    problem.dy = torch.ones(2, 6, 5, 9)
    assert_equal(expanded, run_fused(problem))


@layouts
def test_gradient_in_the_other_layout(layout):
    problem = random_problem((2, 6, 5, 9), torch.float32, layout)
    expected = run_fused(problem)
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    problem.dy = problem.dy.contiguous(memory_format=other)
    assert_equal(run_fused(problem), expected)


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layout_is_kept(dtype, layout):
    problem = random_problem((2, 6, 5, 9), dtype, layout, residual=True, relu=True)
    result = run_fused(problem)
    for name in ("y", "dx", "dresidual"):
        assert result[name].is_contiguous(memory_format=layout), name


def test_parameter_gradients_have_the_parameters_strides():
    problem = random_problem((2, 6, 5, 9), torch.float32, torch.channels_last)
    for name in ("w1", "w2", "ws"):
        t = problem.inputs[name].detach().contiguous(memory_format=torch.channels_last)
        problem.inputs[name] = t.requires_grad_()
    result = run_fused(problem)
    for name in ("w1", "w2", "ws"):
        assert result[f"d{name}"].stride() == problem.inputs[name].stride(), name


def test_two_dimensional_weights():
    problem = random_problem((2, 6, 5, 9))
    expected = run_fused(problem)
    for name in ("w1", "w2"):
        problem.inputs[name] = problem.inputs[name].detach().flatten(1).requires_grad_()
    got = run_fused(problem)
    assert got["dw1"].shape == (4, 6) and got["dw2"].shape == (6, 4)
    assert torch.equal(got["y"], expected["y"]) and torch.equal(got["dw1"], expected["dw1"].flatten(1))


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_reproducible_for_any_number_of_threads(dtype, layout):
    problem = random_problem((7, 48, 9, 11), dtype, layout, biases=True, residual=True, relu=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8, before, before):
            torch.set_num_threads(threads)
            results.append(run_fused(problem))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_equal(results[0], result)


@layouts
def test_each_image_on_its_own(layout):
    """The result of an image does not depend on its batch."""
    problem = random_problem((5, 12, 6, 6), torch.float32, layout)
    x, *params = (problem.inputs[n] for n in ("x", "w1", "w2", "ws"))
    together = functional.cbam(x, *params)
    for n in range(5):
        assert torch.equal(functional.cbam(x[n : n + 1], *params)[0], together[n])


def test_inputs_are_not_written():
    problem = random_problem((2, 6, 5, 9), biases=True, residual=True, relu=True)
    before = {n: t.detach().clone() for n, t in problem.inputs.items()}
    run_fused(problem)
    for name, t in problem.inputs.items():
        assert torch.equal(t, before[name]), name


def test_poison_reaches_what_the_kernels_allocate():
    assert torch.empty(8).isnan().all(), "the fixture poisons memory, or the other tests check less than they say"
