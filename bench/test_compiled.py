"""The cost of the module in a network compiled as a whole, compared with the bare operators."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cbam_fused import CBAM, insert_cbam, reference, routing
from cbam_fused.ops import autograd

from . import cases, networks, timing


class Bare(reference.CBAM):
    """The bare operators: no checks, and the backend is chosen when the network is traced."""

    def forward(self, x: Tensor) -> Tensor:
        backend = routing.backend_for(x)
        return autograd.Cbam.apply(x, *self.weights(), None, None, None, None, False, 0, backend)


def pytest_generate_tests(metafunc):
    metafunc.parametrize("mode", ["inference"] if metafunc.config.getoption("--quick") else ["training", "inference"])
    metafunc.parametrize("device", cases.DEVICES)


def build(factory: type[nn.Module] | None, images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=networks.CLASSES)
    if factory is not None:
        insert_cbam(network, where="each_layer", factory=factory)
    network.to(images.device, memory_format=torch.channels_last).compile(fullgraph=True, dynamic=False)
    return network


def test_compiled_network(device, mode, benchmark, add, quick, tmp_path):
    torch.compiler.reset()
    count, side = (4, 64) if quick else (16, 160)
    images, labels = (t.to(device) for t in networks.batch(None, tmp_path, count, side))
    built = {name: build(factory, images) for name, factory in (("none", None), ("bare", Bare), ("fused", CBAM))}
    steps = networks.Steps(built, images, labels, mode == "training")
    # Compiles. Some of cuDNN's gradients vary from run to run, and the logits that follow must be equal.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        steps()
    with torch.set_grad_enabled(steps.training):
        logits = [built[name](images) for name in ("bare", "fused")]
    if not torch.equal(*logits):
        pytest.fail("not timed: after one step the logits of the two networks differ")
    rounds = timing.rounds_for(5 if quick else 50, 5, steps)
    steps.clear()
    benchmark.pedantic(steps, rounds=rounds, iterations=1)
    entry = {
        "device": device,
        "network": "resnet18 compiled",
        "mode": mode,
        "images": list(images.shape),
        "rounds": rounds,
        "seconds": steps.seconds(),
        "host seconds": steps.seconds(steps.host),
        "tax": steps.tax(),
    }
    benchmark.extra_info.update(entry)
    add("networks", entry)
