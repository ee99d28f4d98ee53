"""Properties of a GPU."""

from functools import cache

import torch
import triton

from .tiles import groups_pay


@cache
def warp_size(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's data centre GPUs; 32 elsewhere, also where nothing depends on it."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


@cache
def pdl(device: torch.device) -> bool:
    """Whether programmatic dependent launch is available: from Hopper on, if Triton supports it."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return hasattr(triton.language.extra.cuda, "gdc_wait")


@cache
def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache if groups of images pay there; 0 otherwise, or if unknown."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    # kHz, bits, two transfers per clock. Without these properties there are no groups.
    clock, width = (getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return properties.L2_cache_size if groups_pay(properties.L2_cache_size, 2 * clock * width // 8 // 1000) else 0
