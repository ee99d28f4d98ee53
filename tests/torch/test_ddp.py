"""Two processes (gloo): DistributedDataParallel and FSDP2 average the gradients of the two half-batches."""

import os
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from cbam_fused import CBAM

LABELS = torch.arange(4)


def network(layout=torch.contiguous_format):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.ReLU(), CBAM(32), nn.Conv2d(32, 16, 1), CBAM(16, variant="official")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).to(memory_format=layout)


def images(layout):
    x = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    return x.to(memory_format=layout)


def backward_of_half(model, rank, layout):
    half = slice(2 * rank, 2 * rank + 2)
    cross_entropy(model(images(layout)[half]), LABELS[half]).backward()


def averaged_by_one_process(layout):
    """The gradients by name; each half has its own BatchNorm statistics, as in two processes."""
    halves = []
    for rank in range(2):
        model = network(layout)
        backward_of_half(model, rank, layout)
        halves.append(dict(model.named_parameters()))
    return {name: (p.grad + halves[1][name].grad) / 2 for name, p in halves[0].items()}


def in_process(rank, folder, check):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for layout in (torch.contiguous_format, torch.channels_last):
        check(rank, layout)
    dist.destroy_process_group()
    # FSDP2 keeps the group, so gloo's threads outlive it. A thread that frees its last tensor while the interpreter
    # shuts down aborts the process (torch 2.14). A failed check has raised before this.
    os._exit(0)


def ddp(rank, layout):
    expected = averaged_by_one_process(layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Grad strides do not match bucket view strides"
        for view in (False, True):
            model = DistributedDataParallel(network(layout), gradient_as_bucket_view=view)
            backward_of_half(model, rank, layout)
            for name, p in model.module.named_parameters():
                torch.testing.assert_close(p.grad, expected[name], msg=f"{name} of process {rank}")
                assert p.grad.stride() == p.stride(), name


# The modules for fully_shard before the whole network.
SHARDED = {
    "network alone": [],
    "each CBAM": ["2", "4"],
    "each mask": ["2.ca", "2.sa", "4.ca", "4.sa"],
    "each layer": ["2.ca.fc1", "2.ca.fc2", "2.sa.conv1", "4.sa.bn"],
}


def fsdp(rank, layout):
    mesh = dist.init_device_mesh("cpu", (2,))
    expected = averaged_by_one_process(layout)
    for case, names in SHARDED.items():
        model = network()
        for name in [*names, ""]:
            fully_shard(model.get_submodule(name), mesh=mesh)
        backward_of_half(model, rank, layout)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad.full_tensor(), expected[name], msg=f"{name}, {case}")
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = network()
    outputs = []
    for name in ("2", "4", ""):
        fully_shard(model.get_submodule(name), mesh=mesh, mp_policy=half)
    model[2].register_forward_hook(lambda module, args, output: outputs.append(output.dtype))
    backward_of_half(model, rank, layout)
    assert outputs == [torch.bfloat16]
    for name, p in model.named_parameters():
        got, wanted = p.grad.full_tensor(), expected[name]
        assert got.dtype == torch.float32
        assert (got - wanted).norm() <= 0.1 * wanted.norm() + 1e-3, name


@pytest.mark.parametrize("check", [ddp, fsdp])
def test_two_processes_average_the_gradients(check, tmp_path):
    torch.multiprocessing.spawn(in_process, (tmp_path, check), nprocs=2)


def test_the_halves_differ():
    """Otherwise the test above could not distinguish an average from one of its terms."""
    grads = []
    for rank in range(2):
        model = network()
        backward_of_half(model, rank, torch.contiguous_format)
        grads.append(model[2].ca.fc1.weight.grad)
    assert not torch.allclose(*grads)


def test_dtensors_are_refused(tmp_path):
    """A channel gate of sharded channels would need sums over all processes."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        module = distribute_module(CBAM(16), mesh)
        with pytest.raises(
            NotImplementedError, match=r"cbam_fused\.forward\.default does not have a sharding strategy"
        ):
            module(distribute_tensor(torch.randn(2, 16, 4, 4), mesh, [Shard(1)]))
    finally:
        dist.destroy_process_group()
