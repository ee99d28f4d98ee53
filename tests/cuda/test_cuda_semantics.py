"""What random numbers do not show, on the emulated CUDA kernels: NaN and Inf, extreme shapes, addresses."""

import pytest
import torch
from emulation import build, driver
from truth import DTYPES, LAYOUTS, NAMES, assert_close_to_truth, random_problem

from cbam_fused import functional, reference
from cbam_fused.ops import registry
from cbam_fused.tensors import accumulation_dtype

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
STAGED = driver.Plan("staged")
PLANS = {"staged": STAGED, "on_chip": driver.Plan("on_chip", 2)}
plans = pytest.mark.parametrize("plan", PLANS)


@pytest.fixture
def emulated(monkeypatch):
    """emulated(plan): from there on, tensors on the CPU go to the CUDA kernels."""

    def use(plan: driver.Plan) -> None:
        monkeypatch.setattr("cbam_fused.routing.wanted", "cpu")
        monkeypatch.setitem(registry.operators, "cpu", driver.operators(plan))

    return use


@plans
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["x", "dy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
# A window around these has no padding: what zero times NaN is in it depends on how the reference convolves.
@pytest.mark.parametrize("place", [(0, 3, 2, 4), (1, 0, 1, 1)], ids=str)
def test_nan_and_inf_spread_as_in_the_reference(place, value, name, dtype, layout, plan, emulated):
    emulated(PLANS[plan])
    problem = random_problem((2, 8, 4, 7), dtype, layout, biases=True, kernel_size=3)
    with torch.no_grad():
        (problem.dy if name == "dy" else problem.inputs["x"])[place] = value
    fused, truth = problem.run(functional.cbam), problem.to(torch.float64).run(reference.cbam)
    for result in truth:
        assert torch.equal(fused[result].isnan(), truth[result].isnan()), result
        assert torch.equal(fused[result].isinf(), truth[result].isinf()), result
    other = 1 - place[0]
    assert fused["y"][other].isfinite().all() and fused["dx"][other].isfinite().all()


@plans
@layouts
@pytest.mark.parametrize("relu", [False, True])
def test_empty_batch(relu, layout, plan, emulated):
    emulated(PLANS[plan])
    problem = random_problem((0, 8, 4, 6), torch.float32, layout, biases=True, residual=True, relu=relu)
    result = problem.run(functional.cbam)
    assert result["y"].shape == result["dx"].shape == (0, 8, 4, 6)
    assert all(not result[f"d{n}"].any() for n in NAMES[1:7])


def test_more_channels_than_a_grid_has_rows(monkeypatch, emulated):
    emulated(driver.Plan("staged"))
    monkeypatch.setenv("CBAM_EMULATION_MODE", "plain")
    assert_close_to_truth(random_problem((3, 22000, 1, 1), hidden=1))


def test_more_images_than_a_grid_has_rows():
    """A block each; unchecked, and the last pass alone, since these are 17 million threads."""
    N = 65600
    x, saved = torch.randn(N, 1, 1, 1), torch.rand(N, 6)
    y = driver.apply_gates(x, saved, None, None, False, check=False)
    assert torch.equal(y.flatten(), x.flatten() * saved[:, 2] * saved[:, 5])


@pytest.mark.slow  # a minute, for 8 million rows
def test_more_rows_than_a_thread_of_each_can_count_in_32_bits(monkeypatch):
    """The gradient of ws, whose blocks divide the rows among 256 threads: a 1 x 1 window over two maps of ones."""
    monkeypatch.setenv("CBAM_EMULATION_MODE", "plain")
    H, last = 2**23 + 9, 1000
    x, dlogits = torch.ones(1, 1, H, 1), torch.zeros(1, 1, H, 1)
    dlogits[:, :, -last:] = 1
    saved, index = torch.ones(1, 3 * H), torch.zeros(1, H, dtype=torch.int32)
    params = (None, None, torch.rand(1, 2, 1, 1), None, None, None)
    results = driver.backward_from_gate_grads(
        None, None, None, dlogits, x, saved, index, *params, False, plan=driver.Plan("staged"), check=False
    )
    assert results[3].flatten().tolist() == [last, last]


def shifted(t: torch.Tensor, offset: int) -> torch.Tensor:
    """The same in memory that begins so many bytes behind a 16-byte boundary."""
    if not offset:
        return t
    size = t.element_size()
    memory = torch.empty(t.numel() + 16 // size, dtype=t.dtype)
    start = (offset - memory.data_ptr()) % 16 // size
    view = memory[start : start + t.numel()].as_strided(t.shape, t.stride(), memory.storage_offset() + start)
    return view.copy_(t)


# Bytes that x, the residual and dy begin behind a 16-byte boundary; in float64 twice as many.
@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offsets", [(4, 0, 0), (0, 4, 0), (0, 0, 4), (8, 8, 8), (12, 8, 4)], ids=str)
def test_addresses_that_are_not_aligned(offsets, dtype, layout, emulated):
    emulated(STAGED)
    problem = random_problem((2, 8, 4, 8), dtype, layout, biases=True, residual=True, relu=True)
    scale = 2 if dtype == torch.float64 else 1
    tensors = problem.inputs["x"], problem.inputs["residual"], problem.dy
    x, residual, problem.dy = (shifted(t.detach(), scale * o) for t, o in zip(tensors, offsets, strict=True))
    problem.inputs |= {"x": x.requires_grad_(), "residual": residual.requires_grad_()}
    assert_close_to_truth(problem)


@layouts
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 2, 4, 8])
def test_accesses_are_as_wide_as_the_addresses_allow(offset, dtype, layout):
    size = dtype.itemsize
    x = shifted(torch.randn(1, 32, 4, 8).to(dtype).to(memory_format=layout), -(-offset // size) * size)
    access = 16 if not offset else 8 if size == 2 and offset == 8 else size
    driver.apply_gates(x, torch.rand(1, 3 * 32 * 2, dtype=accumulation_dtype(dtype)), None, None, False)
    (launch,) = driver.traffic()
    assert launch.buffers["x"].requests == x.nbytes / access / 32
