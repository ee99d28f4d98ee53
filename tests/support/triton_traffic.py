"""How many bytes each Triton kernel loads and stores, by formula, and what eager PyTorch moves, counted alike."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cbam_fused.tensors import accumulation_dtype
from cbam_fused.triton import tiles

# Arguments of x's size.
LARGE = ("x", "dy", "y", "residual", "masked", "dx")


def formulas(shape, R: int, dtype: torch.dtype, channels_last: bool, epilogue: bool) -> dict[str, dict[str, dict]]:
    """(loaded, stored) by operator, kernel and argument, for both gates, a 1 x 1 window and all biases.

    epilogue: with residual and ReLU. a, e: bytes of a sum and of an element of x.
    """
    N, C, H, W = shape
    P, e = H * W, dtype.itemsize
    acc = accumulation_dtype(dtype)
    a = acc.itemsize
    x = N * C * P * e

    def tile(reduces: str) -> tuple[int, int, int, int]:
        """Tiles and runs of an image along its channels, and along its pixels."""
        t = tiles.tile(reduces, C, P, channels_last, acc == torch.float64, 32)
        along_c, along_p = -(-C // t.channels), -(-P // t.pixels)
        return along_c, -(-along_c // tiles.LOOP), along_p, -(-along_p // tiles.LOOP)

    c_tiles, _, _, splits = tile("pixels")
    _, _, p_tiles, _ = tile("channels")
    _, runs, tiles_, _ = tile("none")
    maps = -(-P // min(64 if a == 8 else 128, tiles.power_of_two(P)))
    c_blocks, r_blocks = -(-C // 32), -(-R // 16)
    parts = N * splits * C
    forward = {
        "channel_pool": {"x": (x, 0), "sums": (0, parts * a), "maxima": (0, parts * a), "argmaxima": (0, parts * 4)},
        "channel_gate": {
            "sums": (parts * a, 0),
            "maxima": (parts * a, 0),
            "argmaxima": (parts * 4, 0),
            "w1": (N * R * C * a, 0),
            "b1": (N * R * a, 0),
            "w2": (N * C * R * a, 0),
            "b2": (N * C * a, 0),
            "saved": (0, N * (3 * C + 2 * R) * a),
            "index": (0, N * C * 4),
        },
        "spatial_pool": {"x": (x, 0), "saved": (N * p_tiles * C * a, N * 2 * P * a), "index": (0, N * P * 4)},
        "gate_and_apply": {
            "x": (x, 0),
            "ws": (N * tiles_ * runs * 2 * a, 0),
            "bs": (N * tiles_ * runs * a, 0),
            "saved": (N * (tiles_ * C + runs * 2 * P) * a, N * P * a),
            "y": (0, x),
        },
    }
    backward = {
        "products": {
            "x": (x, 0),
            "dy": (x, 0),
            "saved": (N * (P + p_tiles * C) * a, 0),
            "ds": (0, N * P * a),
            "over_pixels": (0, N * p_tiles * C * a),
        },
        "spatial_gate_backward": {
            "dlogits": (N * 2 * P * a, 0),
            "saved": (N * 2 * P * a, 0),
            "ws": (N * maps * 2 * a, 0),
            "dmaps": (0, N * 2 * P * a),
            "dconv": (0, N * maps * 3 * a),
        },
        "map_products": {
            "x": (x, 0),
            "dmaps": (N * c_tiles * 2 * P * a, 0),
            "index": (N * c_tiles * P * 4, 0),
            "sums": (0, parts * a),
        },
        "channel_gate_backward": {
            "direct": (N * p_tiles * C * a, 0),
            "through_maps": (parts * a, 0),
            "dconv": (N * maps * 3 * a, 0),
            "w1": (N * R * C * a, 0),
            "w2": (N * C * R * a, 0),
            "saved": (N * (C + 2 * R) * a, 0),
            "partial": (0, N * (C + 2 * R + 3) * a),
            "dpools": (0, N * 2 * C * a),
        },
        "input_gradient": {
            "dy": (x, 0),
            "saved": (N * (runs * P + tiles_ * C) * a, 0),
            "index": (N * (runs * P + tiles_ * C) * 4, 0),
            "dmaps": (N * runs * 2 * P * a, 0),
            "dpools": (N * tiles_ * 2 * C * a, 0),
            "dx": (0, x),
        },
        "parameter_gradients": {
            "partial": (N * (2 * R * c_blocks + C * r_blocks + 3) * a, 0),
            "saved": (N * (2 * R * c_blocks + 2 * C * r_blocks) * a, 0),
            "dw1": (0, R * C * a),
            "db1": (0, R * a),
            "dw2": (0, C * R * a),
            "db2": (0, C * a),
            "dws": (0, 2 * a),
            "dbs": (0, a),
        },
    }
    # The four operators that s comes between: each program that needs a part of it reads it from there, not from saved.
    attend = forward | {
        "gate_and_apply": {
            "ws": (N * tiles_ * 2 * a, 0),
            "bs": (N * tiles_ * a, 0),
            "saved": (N * 2 * P * a, N * P * a),
        }
    }
    apply = {
        "gate_and_apply": {
            "x": (x, 0),
            "saved": (N * tiles_ * C * a, 0),
            "s": (N * runs * P * a, 0),
            "y": (0, x),
        }
    }
    products = {
        "products": backward["products"] | {"saved": (N * p_tiles * C * a, 0), "s": (N * P * a, 0)},
        "join": {"parts": (N * p_tiles * C * a, 0), "sums": (0, N * C * a)},
    }
    backward_gates = {kernel: dict(arguments) for kernel, arguments in backward.items() if kernel != "products"}
    backward_gates["channel_gate_backward"]["direct"] = (N * C * a, 0)
    backward_gates["input_gradient"] |= {"saved": (N * tiles_ * C * a, 0), "s": (N * runs * P * a, 0)}
    if epilogue:
        for kernels in (forward, apply):
            kernels["gate_and_apply"]["residual"] = (x, 0)
        for kernels in (backward, products):
            kernels["products"] |= {"y": (x, 0), "masked": (0, x)}
    return {
        "forward": forward,
        "backward": backward,
        "attend": attend,
        "apply": apply,
        "products": products,
        "backward_gates": backward_gates,
    }


class EagerBytes(TorchDispatchMode):
    """Adds up what PyTorch's operators read and write, each tensor argument and result once an operator."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.__name__.startswith(("empty", "new_empty", "detach")):
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            self.bytes += sum(t.untyped_storage().nbytes() if t.numel() else 0 for t in tensors)
        return result
