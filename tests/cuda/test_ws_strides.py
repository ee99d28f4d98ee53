"""A spatial weight in channels_last, as networks in channels_last have it: read and its gradient written as it lies."""

import pytest
import torch
from emulation import build, driver
from truth import LAYOUTS, random_problem

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)
PLANS = {name: driver.Plan(name) for name in ("staged", "dataflow")} | {"on_chip": driver.Plan("on_chip", 2)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("plan", PLANS)
def test_results_have_the_same_bits(plan, kernel_size, layout):
    problem = random_problem((2, 8, 9, 6), torch.float32, layout, biases=True, kernel_size=kernel_size)
    x, w1, w2, ws, b1, b2, bs = (problem.inputs[n].detach() for n in ("x", "w1", "w2", "ws", "b1", "b2", "bs"))
    results = []
    for weight in (ws.contiguous(), ws.contiguous(memory_format=torch.channels_last)):
        params = (w1, w2, weight, b1, b2, bs)
        y, saved, index = driver.forward(x, *params, None, True, plan=PLANS[plan])
        grads = driver.backward(problem.dy, x, y, saved, index, *params, plan=PLANS[plan])
        results.append((y, saved, index, *grads))
        assert grads[3].stride() == weight.stride()
    assert results[1][6].stride() != results[0][6].stride()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
