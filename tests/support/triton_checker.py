"""Watches every load and store of interpreted Triton kernels: bounds, races, bytes, 32-byte sectors.

The interpreter runs a program at a time on whole tiles, so a tile's load or store is what is counted here as one
request. It passes over what a GPU would not forgive: lanes outside of the tensors, two programs (or lanes) that write
one address, a program that reads what the same launch writes, for which there would have to be a barrier.
"""

import inspect
from collections import defaultdict
from dataclasses import dataclass
from unittest import mock

import numpy as np
from triton.runtime import interpreter

NOBODY, SEVERAL = -1, -2
SECTOR = 32


class KernelError(Exception):
    """What a kernel may not do: kernel, tensor and program are named."""


@dataclass
class Traffic:
    """Bytes that requests asked for, each address once a request, and the sectors that these bytes lie in.

    distinct: bytes that were asked for at all, each once a launch, however often they were.
    """

    loaded: int = 0
    stored: int = 0
    sectors: int = 0
    distinct: int = 0

    def efficiency(self) -> float:
        return (self.loaded + self.stored) / (SECTOR * self.sectors)


class Region:
    """The memory of one tensor argument, and which program has read and written each of its elements."""

    def __init__(self, name: str, tensor):
        self.name, self.itemsize = name, tensor.element_size()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.start = tensor.data_ptr()
        self.stop = self.start + (last + 1) * self.itemsize
        self.reader, self.writer = (np.full(last + 1, NOBODY, np.int64) for _ in range(2))


class Checker:
    """A context in which every launch is watched. ``traffic[kernel][argument]`` adds up over the launches."""

    def __init__(self):
        self.traffic = defaultdict(lambda: defaultdict(Traffic))
        self.launches = []
        self._kernel, self._regions = "", []

    def __enter__(self) -> "Checker":
        builder, run = interpreter.interpreter_builder, interpreter.GridExecutor.__call__
        load, store = builder.create_masked_load, builder.create_masked_store

        def watched_load(ptrs, mask, *args):
            self._loads(ptrs.data, mask.data)
            return load(ptrs, mask, *args)

        def watched_store(ptrs, value, mask, *args):
            self._stores(ptrs.data, mask.data)
            return store(ptrs, value, mask, *args)

        def watched_run(executor, *args, **kwargs):
            names = inspect.signature(executor.fn).parameters
            options = {n: v for n, v in kwargs.items() if n in names}
            self._begin(executor.fn.__name__, inspect.signature(executor.fn).bind(*args, **options).arguments)
            run(executor, *args, **kwargs)
            self._end()

        self._patches = [
            mock.patch.object(builder, "create_masked_load", watched_load),
            mock.patch.object(builder, "create_masked_store", watched_store),
            mock.patch.object(interpreter.GridExecutor, "__call__", watched_run),
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error) -> None:
        for patch in reversed(self._patches):
            patch.stop()

    def _begin(self, kernel: str, arguments: dict) -> None:
        self._kernel = kernel
        self.launches.append(kernel)
        tensors = {name: a for name, a in arguments.items() if hasattr(a, "data_ptr") and a.numel()}
        self._regions = [Region(name, tensor) for name, tensor in tensors.items()]

    def _end(self) -> None:
        for region in self._regions:
            touched = int(((region.reader != NOBODY) | (region.writer != NOBODY)).sum())
            if touched:
                self.traffic[self._kernel][region.name].distinct += touched * region.itemsize

    def _program(self) -> int:
        return interpreter.interpreter_builder.grid_idx[0]  # grids of one dimension

    def _request(self, addresses: np.ndarray, mask: np.ndarray, what: str) -> tuple[Region | None, np.ndarray]:
        """The region that the request's active lanes lie in, and their addresses."""
        addresses, mask = np.broadcast_arrays(addresses, mask.astype(bool))
        active = addresses[mask].astype(np.int64)
        if not active.size:
            return None, active
        low, high = int(active.min()), int(active.max())
        for region in self._regions:
            if region.start <= low and high + region.itemsize <= region.stop:
                return region, active
        nearest = min(self._regions, key=lambda r: min(abs(low - r.start), abs(high - r.stop)))
        raise KernelError(
            f"{self._kernel}, program {self._program()}: {what} outside of its tensor, near {nearest.name}: "
            f"bytes {low - nearest.start} to {high - nearest.start} of {nearest.stop - nearest.start}"
        )

    def _count(self, region: Region, addresses: np.ndarray) -> tuple[Traffic, int]:
        traffic = self.traffic[self._kernel][region.name]
        traffic.sectors += np.union1d(addresses // SECTOR, (addresses + region.itemsize - 1) // SECTOR).size
        return traffic, addresses.size * region.itemsize

    def _loads(self, addresses: np.ndarray, mask: np.ndarray) -> None:
        region, active = self._request(addresses, mask, "load")
        if region is None:
            return
        unique = np.unique(active)
        traffic, size = self._count(region, unique)
        traffic.loaded += size
        at, program = (unique - region.start) // region.itemsize, self._program()
        if (region.writer[at] != NOBODY).any():
            raise KernelError(f"{self._kernel}, program {program}: load from {region.name}, which this launch writes")
        seen = region.reader[at]
        region.reader[at] = np.where((seen == NOBODY) | (seen == program), program, SEVERAL)

    def _stores(self, addresses: np.ndarray, mask: np.ndarray) -> None:
        region, active = self._request(addresses, mask, "store")
        if region is None:
            return
        unique = np.unique(active)
        traffic, size = self._count(region, unique)
        traffic.stored += size
        at, program = (unique - region.start) // region.itemsize, self._program()
        who = f"{self._kernel}, program {program}"
        if unique.size != active.size:
            raise KernelError(f"{who}: two lanes write one address of {region.name}")
        if (region.writer[at] != NOBODY).any():
            raise KernelError(f"{who}: a second store to one address of {region.name}")
        if ((region.reader[at] != NOBODY) & (region.reader[at] != program)).any():
            raise KernelError(f"{who}: store to {region.name} where another program of this launch has read")
        region.writer[at] = program
