"""A fake GPU for programs that need one: ``python tests/support/fake_gpu.py -m bench.gpu ...``

A tensor "on cuda" is in the CPU's memory with a marked storage; its device is cuda, and results computed from it are
marked, too. Tensors of both kinds do not mix, as on a GPU. Calls that would block the host are recorded. Events,
streams, graphs and the memory statistics of torch.cuda are simulated with the CPU's clock; a graph repeats the captured
calls. The kernels are those of the CPU.
"""

import contextlib
import runpy
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cbam_fused.ops import registry

CUDA = torch.device("cuda", 0)
group_tensors = torch._C._group_tensors_by_device_and_dtype
# Functions of a tensor on a GPU whose result the host must know.
READ = {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__", "equal", "allclose"}
READ |= {"nonzero", "argwhere", "masked_select", "unique", "bincount"}
FROM_DATA = {"tensor", "as_tensor", "asarray", "new_tensor"}
MIXING = {"copy_", "__setitem__", "__getitem__", "__set__", "_has_compatible_shallow_copy_type", "set_"}
BACKWARD = {"backward", "grad"}


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def names_cuda(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.split(":")[0] == "cuda"
    )


class FakeGpu(TorchFunctionMode):
    """While it is entered, this thread has a GPU; ``waits`` are the functions that blocked the host."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.in_backward = 0

    def __enter__(self):
        self.patches = contextlib.ExitStack()
        for target, attributes in self._replaced().items():
            for name, value in attributes.items():
                self.patches.enter_context(mock.patch.object(target, name, value))
        operators = {"cuda": registry.operators["cpu"], "triton": registry.operators["cpu"]}
        self.patches.enter_context(mock.patch.dict(registry.operators, operators))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.patches.close()

    def __torch_function__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, owner = getattr(f, "__name__", ""), getattr(f, "__self__", None)
        if name == "__get__" and getattr(owner, "__name__", "") in ("device", "is_cuda"):
            on_gpu = self.on_gpu(args[0])
            return on_gpu if owner.__name__ == "is_cuda" else CUDA if on_gpu else f(*args, **kwargs)
        if name in ("to", "cpu", "cuda"):
            return self._move(f, name, args, kwargs)
        if f is torch.device or name == "_parse_to":
            return f(*args, **kwargs)
        if name == "pin_memory":
            return args[0]
        if name in READ and any(map(self.on_gpu, tensors(args))):
            self.waits.append(name)
        if name == "copy_" and self.on_gpu(args[0]) != self.on_gpu(args[1]):
            self._wait(f"copy_ between devices, non_blocking={bool(kwargs.get('non_blocking'))}")
        return self._call(f, name, args, kwargs)

    def _call(self, f, name, args, kwargs):
        named = any(map(names_cuda, (*args, *kwargs.values())))
        given = list(tensors([args, kwargs]))
        marked = [self.on_gpu(t) for t in given]
        if any(marked) and name not in MIXING | BACKWARD:
            other = [t for t, on_gpu in zip(given, marked, strict=True) if not on_gpu and t.dim()]
            if other and not self.in_backward:
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, cuda and cpu are given")
        if name in FROM_DATA and named and not any(marked):
            self._wait(f"{name} of data on the host")
        args = tuple("cpu" if names_cuda(a) else a for a in args)
        kwargs = {key: "cpu" if names_cuda(a) else a for key, a in kwargs.items()}
        self.in_backward += name in BACKWARD
        try:
            result = f(*args, **kwargs)
        finally:
            self.in_backward -= name in BACKWARD
        if named or any(marked):
            self._mark(result)
        return result

    def _move(self, f, name, args, kwargs):
        """Tensor.to, cpu and cuda: a copy to the other device."""
        source = args[0]
        target = {"cpu": torch.device("cpu"), "cuda": CUDA}.get(name)
        for value in (*args[1:], kwargs.get("device")):
            if isinstance(value, Tensor):
                target = value.device
            elif isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "cuda", "cuda:0")):
                target = torch.device(value)
        here = self.on_gpu(source)
        there = here if target is None else target.type == "cuda"
        if name == "to":
            args = [source, *("cpu" if names_cuda(a) else a for a in args[1:])]
            kwargs = {key: "cpu" if names_cuda(a) else a for key, a in kwargs.items()}
            result = f(*args, **kwargs)
        else:
            result = source
        if here == there:
            return self._mark(result) if here else result
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[-1] is True)
        if not non_blocking:
            self._wait(f"{name} {'cuda' if there else 'cpu'}")
        with torch._C.DisableTorchFunction():
            if result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr():
                result = result.clone()
        return self._mark(result) if there else result

    def _wait(self, what: str) -> None:
        self.waits.append(what)

    def on_gpu(self, t: Any) -> bool:
        if not isinstance(t, Tensor):
            return False
        with torch._C.DisableTorchFunction():
            return bool(self.in_backward) or hasattr(t.untyped_storage(), "on_gpu")

    def _mark(self, result: Any) -> Any:
        with torch._C.DisableTorchFunction():
            for t in tensors(result):
                t.untyped_storage().on_gpu = True
        return result

    def _grouped(self, *given):
        """As in PyTorch, whose C++ knows only the device that the memory is on."""
        groups = group_tensors(*given)
        return {(CUDA if self.on_gpu(g[0][0][0]) else device, dtype): g for (device, dtype), g in groups.items()}

    def _replaced(self) -> dict[Any, dict[str, Any]]:
        """The attributes that are replaced while there is this GPU."""
        properties = types.SimpleNamespace(
            name="a stand-in", major=9, minor=0, L2_cache_size=1 << 16, multi_processor_count=4, total_memory=1 << 30
        )
        cuda = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: properties.name,
            "get_device_properties": lambda device=None: properties,
            "is_bf16_supported": lambda including_emulation=True: True,
            "synchronize": lambda device=None: self._wait("synchronize"),
            "empty_cache": lambda: None,
            "Event": Event,
            "Stream": Stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda device=None: Stream(),
            "CUDAGraph": CUDAGraph,
            "graph": capturing,
            "reset_peak_memory_stats": lambda device=None: None,
            "_lazy_init": lambda: None,
            "memory_allocated": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 0,
        }
        return {
            torch.cuda: cuda,
            torch: {"compile": compile_nothing},
            torch.profiler: {"profile": Profile},
            torch.accelerator: {"current_stream": lambda device=None: Stream()},
            torch._C: {"_group_tensors_by_device_and_dtype": self._grouped},
            torch.nn.Module: {
                "compile": lambda module, *args, **kwargs: compile_nothing(module, *args, **kwargs) and None
            },
            registry: {"cuda_missing": "", "triton_missing": "", "cuda_architectures": ("9.0",)},
        }


def compile_nothing(function: Callable, *, dynamic=None, fullgraph=False, mode=None) -> Callable:
    """torch.compile with only these arguments and modes; compiles nothing."""
    from torch._inductor import list_mode_options

    assert mode is None or mode in list_mode_options(), mode
    return function


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False):
        self.timing = enable_timing

    def record(self, stream=None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        assert self.time

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        assert self.timing and end.timing
        return 1e3 * (end.time - self.time)


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)

    def synchronize(self) -> None:
        pass

    def is_capturing(self) -> bool:
        return False


class CUDAGraph:
    """Repeats the captured calls, and writes the results into the captured ones."""

    def replay(self) -> None:
        again = self.call()
        with torch.no_grad():
            for old, new in zip(tensors(self.outputs()), tensors(again), strict=True):
                old.copy_(new)


@contextlib.contextmanager
def capturing(graph: CUDAGraph, pool=None, stream=None, capture_error_mode="global") -> Iterator[None]:
    """torch.cuda.graph for cbam_fused.selftest.captured only, which has the captured function in ``call``."""
    here = sys._getframe(2)
    graph.call = here.f_locals["call"]
    graph.outputs = lambda: here.f_locals.get("outputs")
    yield


class Profile(torch.profiler.profile):
    """Reports the CPU's operations as kernels."""

    def __init__(self, *, activities):
        assert torch.profiler.ProfilerActivity.CUDA in activities
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU])

    def export_chrome_trace(self, path: str) -> None:
        super().export_chrome_trace(path)
        trace = Path(path)
        trace.write_text(trace.read_text().replace('"cat": "cpu_op"', '"cat": "kernel"'))


if __name__ == "__main__":
    assert sys.argv[1] == "-m"
    program, sys.argv[:] = sys.argv[2], sys.argv[2:]
    with FakeGpu():
        runpy.run_module(program, run_name="__main__", alter_sys=True)
