"""What a call of a module costs beside its kernels: operators, allocations and copies of a training step, counted."""

from collections import Counter

import pytest
import torch
from torch import nn, profiler

from cbam_fused import CBAM
from cbam_fused.ops import registry

LAYOUTS = [torch.contiguous_format, torch.channels_last]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def counted(call) -> Counter[str]:
    """Calls of operators by name, and under "memory" how often memory is taken."""
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    counts = Counter(e.name() for e in events if e.name().startswith(("aten::", "cbam_fused::")))
    counts["memory"] = sum(e.name() == "[memory]" and e.nbytes() > 0 for e in events)
    return counts


def module_and_inputs(layout, **options):
    torch.manual_seed(0)
    module = CBAM(16, 4, **options).to(memory_format=layout)
    x, residual, dy = torch.randn(3, 2, 16, 5, 6).unbind()
    x, residual, dy = (t.contiguous(memory_format=layout) for t in (x, residual, dy))
    return module, x.requires_grad_(), residual.requires_grad_(), dy


def clear(module: nn.Module, *inputs: torch.Tensor) -> None:
    for t in (*inputs, *module.parameters()):
        t.grad = None


@layouts
def test_a_step_calls_two_operators_and_copies_nothing(layout):
    """AccumulateGrad takes each gradient as it is, since it has the strides of its parameter.

    Memory is taken forward for y, saved, index and the scratch, backward for dx, that of the residual, the scratch and
    each parameter's gradient.
    """
    module, x, residual, dy = module_and_inputs(layout)
    assert module.sa.conv1.weight.is_contiguous(memory_format=layout)

    def step() -> None:
        module(x, residual=residual, relu=True).backward(dy)

    step()
    clear(module, x, residual)
    counts = counted(step)
    of_gradients = {"aten::detach": counts["aten::detach"]}  # which AccumulateGrad calls, without memory
    assert counts == {"cbam_fused::forward": 1, "cbam_fused::backward": 1, "memory": 4 + 3 + 3} | of_gradients
    assert all(p.grad.stride() == p.stride() for p in module.parameters())


@layouts
def test_a_forward_calls_one_operator(layout):
    module, x, *_ = module_and_inputs(layout)

    def forward() -> None:
        with torch.no_grad():
            module(x)

    forward()
    assert counted(forward) == {"cbam_fused::forward": 1, "memory": 4}


def test_biases_are_the_only_further_results():
    module, x, residual, dy = module_and_inputs(torch.contiguous_format, bias=True, spatial_bias=True)

    def step() -> None:
        module(x, residual=residual, relu=True).backward(dy)

    step()
    clear(module, x, residual)
    assert counted(step)["memory"] == 4 + 3 + 6


@pytest.mark.skipif(bool(registry.cpu_missing), reason=registry.cpu_missing)
def test_what_is_absent_is_none():
    """Neither the gradient of the residual without a ReLU nor those of absent parameters are tensors of no elements."""
    x, ws = torch.randn(2, 3, 4, 5), torch.randn(1, 2, 3, 3)
    run, params = registry.operators["cpu"], (None, None, ws, None, None, None)
    y, saved, index = run.forward(x, *params, None, False, 0)
    dx, dw1, dw2, dws, db1, db2, dbs, dresidual = run.backward(x, x, None, saved, index, *params, 0)
    assert dx.shape == x.shape and dws.shape == ws.shape
    assert dw1 is dw2 is db1 is db2 is dbs is dresidual is None
