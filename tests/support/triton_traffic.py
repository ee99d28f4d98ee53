"""How many bytes each Triton kernel loads and stores, by formula, and what eager PyTorch moves, counted alike."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cbam_fused.tensors import accumulation_dtype
from cbam_fused.triton import tiles

# Arguments of x's size.
LARGE = ("x", "dy", "y", "residual", "masked", "dx")


def formulas(
    shape, R: int, dtype: torch.dtype, channels_last: bool, epilogue: bool, even: bool
) -> dict[str, dict[str, dict]]:
    """(loaded, stored) by operator, kernel and argument, for both gates, a 1 x 1 window and all biases.

    epilogue: with residual and ReLU. even: with even ties. a, e: bytes of a sum and of an element of x.
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
        "cbam_fwd_channel_pool": {
            "x": (x, 0),
            "sums": (0, parts * a),
            "maxima": (0, parts * a),
            "argmax": (0, parts * 4),
        },
        "cbam_fwd_channel_gate": {
            "sums": (parts * a, 0),
            "maxima": (parts * a, 0),
            "argmax": (parts * 4, 0),
            "w1": (N * R * C * a, 0),
            "b1": (N * R * a, 0),
            "w2": (N * C * R * a, 0),
            "b2": (N * C * a, 0),
            "saved": (0, N * (3 * C + 2 * R) * a),
            "index": (0, N * C * 4),
        },
        "cbam_fwd_spatial_pool": {"x": (x, 0), "saved": (N * p_tiles * C * a, N * 2 * P * a), "index": (0, N * P * 4)},
        "cbam_fwd_apply": {
            "x": (x, 0),
            "ws": (N * tiles_ * runs * 2 * a, 0),
            "bs": (N * tiles_ * runs * a, 0),
            "saved": (N * (tiles_ * C + runs * 2 * P) * a, N * P * a),
            "y": (0, x),
        },
    }
    backward = {
        "cbam_bwd_products": {
            "x": (x, 0),
            "dy": (x, 0),
            "saved": (N * (P + p_tiles * C) * a, 0),
            "ds": (0, N * P * a),
            "dg_sums": (0, N * p_tiles * C * a),
        },
        "cbam_bwd_spatial_gate": {
            "dlogits": (N * 2 * P * a, 0),
            "saved": (N * 2 * P * a, 0),
            "ws": (N * maps * 2 * a, 0),
            "dmaps": (0, N * 2 * P * a),
            "dconv": (0, N * maps * 3 * a),
        },
        "cbam_bwd_map_products": {
            "x": (x, 0),
            "dmaps": (N * c_tiles * 2 * P * a, 0),
            "index": (N * c_tiles * P * 4, 0),
            "map_sums": (0, parts * a),
        },
        "cbam_bwd_channel_gate": {
            "dg_sums": (N * p_tiles * C * a, 0),
            "map_sums": (parts * a, 0),
            "dconv": (N * maps * 3 * a, 0),
            "w1": (N * R * C * a, 0),
            "w2": (N * C * R * a, 0),
            "saved": (N * (C + 2 * R) * a, 0),
            "partial": (0, N * (C + 3 * R + 3) * a),
            "dpools": (0, N * 2 * C * a),
        },
        "cbam_bwd_input": {
            "dy": (x, 0),
            "saved": (N * (runs * P + tiles_ * C) * a, 0),
            "index": (N * (runs * P + tiles_ * C) * 4, 0),
            "dmaps": (N * runs * 2 * P * a, 0),
            "dpools": (N * tiles_ * 2 * C * a, 0),
            "dx": (0, x),
        },
        "cbam_bwd_parameters": {
            "partial": (N * (3 * R * c_blocks + C * r_blocks + 3) * a, 0),
            "saved": (N * 2 * C * r_blocks * a, 0),
            "dw1": (0, R * C * a),
            "db1": (0, R * a),
            "dw2": (0, C * R * a),
            "db2": (0, C * a),
            "dws": (0, 2 * a),
            "dbs": (0, a),
        },
    }
    if even:  # by comparison of x with the maxima, whose number is in index, not their place
        backward["cbam_bwd_spatial_gate"]["index"] = (N * P * 4, 0)
        backward["cbam_bwd_channel_gate"]["index"] = (N * C * 4, 0)
        of_maps, of_dx = backward["cbam_bwd_map_products"], backward["cbam_bwd_input"]
        of_maps["saved"] = (N * (splits * C + c_tiles * P) * a, 0)
        of_dx |= {"x": (x, 0), "saved": (N * 2 * (runs * P + tiles_ * C) * a, 0)}
        del of_maps["index"], of_dx["index"]
    # The four operators that s comes between: each program that needs a part of it reads it from there, not from saved.
    gates_forward = forward | {
        "cbam_fwd_apply": {
            "ws": (N * tiles_ * 2 * a, 0),
            "bs": (N * tiles_ * a, 0),
            "saved": (N * 2 * P * a, N * P * a),
        }
    }
    apply = {
        "cbam_fwd_apply": {
            "x": (x, 0),
            "saved": (N * tiles_ * C * a, 0),
            "s": (N * runs * P * a, 0),
            "y": (0, x),
        }
    }
    products = {
        "cbam_bwd_products": backward["cbam_bwd_products"] | {"saved": (N * p_tiles * C * a, 0), "s": (N * P * a, 0)},
        "cbam_bwd_join": {"parts": (N * p_tiles * C * a, 0), "sums": (0, N * C * a)},
    }
    backward_from_gate_grads = {
        kernel: dict(arguments) for kernel, arguments in backward.items() if kernel != "cbam_bwd_products"
    }
    backward_from_gate_grads["cbam_bwd_channel_gate"]["dg_sums"] = (N * C * a, 0)
    s = N * runs * P * a  # not from saved
    backward_from_gate_grads["cbam_bwd_input"] |= {
        "saved": (backward["cbam_bwd_input"]["saved"][0] - s, 0),
        "s": (s, 0),
    }
    if epilogue:
        for kernels in (forward, apply):
            kernels["cbam_fwd_apply"]["residual"] = (x, 0)
        for kernels in (backward, products):
            kernels["cbam_bwd_products"] |= {"y": (x, 0), "masked": (0, x)}
    return {
        "forward": forward,
        "backward": backward,
        "gates_forward": gates_forward,
        "apply_gates": apply,
        "gate_grads": products,
        "backward_from_gate_grads": backward_from_gate_grads,
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
