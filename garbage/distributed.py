"""Training in several processes started by torchrun; with a single process this does nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from . import InputError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group if torchrun started this process: gloo on CPUs, nccl on GPUs.

    Raises:
        InputError: more processes than GPUs, or an environment that is not torchrun's.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    missing = ", ".join(name for name in TORCHRUN if name not in os.environ)
    if missing:
        raise InputError(f"WORLD_SIZE is set as by torchrun, but not {missing}: unset it, or start with torchrun")
    if torch.cuda.is_available():
        processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if processes > gpus:  # raised by all: the first process, which prints, has a GPU
            raise InputError(f"each process needs a GPU: --nproc-per-node is {processes}, this machine has {gpus}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def first_alone() -> Iterator[bool]:
    """True in the first process; the others wait until it has left the block."""
    if rank() == 0:
        yield True
    if dist.is_initialized():
        dist.barrier()
    if rank() > 0:
        yield False


def replicate(model: nn.Module) -> nn.Module:
    """The network for training; with several processes gradients are averaged."""
    if not dist.is_initialized():
        return model
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return nn.parallel.DistributedDataParallel(model, gpus)


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Copy the buffers of the first process to all, since each process has its own BatchNorm statistics."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if not dist.is_initialized():
        return values
    values = values.to(device())
    dist.all_reduce(values)
    return values


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(total(torch.tensor(float(flag))))


def gathered(share: Any) -> list[Any] | None:
    """The objects of all processes in order, in the first process; None in the others."""
    if not dist.is_initialized():
        return [share]
    shares = [None] * world_size() if rank() == 0 else None
    dist.gather_object(share, shares)
    return shares


def from_first(value: Any) -> Any:
    """The first process's object, in all processes."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, device=device())
    return values[0]
