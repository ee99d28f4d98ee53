"""Memory of a forward and backward, as multiples of x's bytes: saved tensors and peak."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

TOLERANCE = 0.05  # for the peak of a clone, which must be 1
LEAST = 1 << 20  # fewest bytes of x; for smaller x single pages and the parameters dominate


def kept_for_backward(module: nn.Module, x: Tensor) -> float:
    """The storages that autograd saves, each once, without the parameters; x is one of them and counts as 1."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    del y  # held until here, so that no freed storage's address is reused
    return sum(size for address, size in storages.items() if address not in parameters) / x.nbytes


def peaks(modules: dict[str, nn.Module], x: Tensor, dy: Tensor) -> dict[str, float] | None:
    """The peak memory of forward and backward, without x, dy and the parameters.

    None for small maps, or if the same measurement of x.clone() is not 1.
    """
    if x.nbytes < LEAST:
        return None
    peak = _cuda_peak if x.device.type == "cuda" else _cpu_peak

    def step(module: nn.Module) -> None:
        y = module(x)
        y.backward(dy)

    measured = {"clone": peak(x.detach().clone) / x.nbytes}
    for name, module in modules.items():
        for leaf in (x, *module.parameters()):
            leaf.grad = None
        measured[name] = peak(lambda module=module: step(module)) / x.nbytes
    return measured if abs(measured["clone"] - 1) <= TOLERANCE else None


def _cpu_peak(call: Callable[[], object]) -> int:
    """Resident memory, which includes allocations of the kernels; Linux can reset its peak."""
    ctypes.CDLL(None).malloc_trim(0)  # otherwise the call would reuse resident pages
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_resident()
    call()
    return _peak_resident() - before


def _peak_resident() -> int:
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def _cuda_peak(call: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
