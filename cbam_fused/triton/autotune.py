"""Optional choice of tiles by measurement: CBAM_FUSED_AUTOTUNE=1 times a few for each operator and shape, once.

Off by default, since another tile adds in another order: results then differ in the last bits between processes. Never
while a CUDA graph is captured, in which nothing may wait for the GPU; what was chosen before is used.
"""

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from triton.testing import do_bench

from .launch import Call
from .tiles import candidates

_chosen: dict[tuple, tuple] = {}


def tuned(operator: str, call: Call, x: Tensor, run: Callable[[Call], None]) -> Call:
    """The call with the fastest tiles known for it; run(call) launches the operator and may be repeated."""
    if os.environ.get("CBAM_FUSED_AUTOTUNE") != "1" or x.device.type == "cpu" or call.N == 0:
        return call
    key = (operator, x.device, x.dtype, call)
    if key not in _chosen and not (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        _chosen[key] = fastest(call, run)
    return replace(call, tuned=_chosen.get(key, ()))


def fastest(call: Call, run: Callable[[Call], None]) -> tuple:
    """The fastest tile of each class of passes, one class after the other."""
    for reduces in ("pixels", "channels", "none"):
        options = [replace(call, tuned=(*call.tuned, (reduces, t))) for t in candidates(reduces, *call.shape_class)]
        call = min(options, key=lambda option: do_bench(lambda: run(option), return_mode="median"))
    return call.tuned
