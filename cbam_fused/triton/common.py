"""Functions that all kernels share: addresses in both layouts, the maximum and its argmax, the neighbours of a pixel.

An image is a matrix of C channels and P = H W pixels, and a tile has the shape (channels, pixels). Pixels are
contiguous in NCHW, channels in NHWC (channels_last); the constexpr CHANNELS_LAST selects the layout.

A row of saved starts with the pools, POOLS C numbers, then g; it ends with the two maps and s, 3 P numbers. A row of
index starts with C numbers for the maxima over pixels and ends with P numbers for the maxima over channels. A number is
the argmax, or the count of tied elements if EVEN.
"""

import triton
import triton.language as tl

TAPS = tl.constexpr(16)  # weights of the window in one tile


@triton.jit
def wait_for_launch(PDL: tl.constexpr):
    """Programmatic dependent launch: let the next launch start, then wait for the results of the launches before.

    Every kernel calls this before its first load or store.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """size, a multiple of ALIGN, as an expression from which the compiler derives wide loads."""
    return size // ALIGN * ALIGN


@triton.jit
def offsets(c, p, C, P, CHANNELS_LAST: tl.constexpr):
    """Offsets of the tile (c, p) in its image. They fit in 32 bits: operators.py rejects larger images."""
    if CHANNELS_LAST:
        return p[None, :] * C + c[:, None]
    else:
        return c[:, None] * P + p[None, :]


@triton.jit
def image_of(tensor, n, C, P):
    """Address of image n in an (N, C, P) tensor of any size: n is int64, here and below."""
    return tensor + n * C * P


@triton.jit
def maps_of(saved, n, saved_size, P):
    """Address of the two maps and s in row n of saved: mean_c, max_c, s; P numbers each."""
    return saved + (n + 1) * saved_size - 3 * P


@triton.jit
def spatial_gate_of(s, saved, n, saved_size, P):
    """Address of row n of s, (N, P); s None: the s in saved."""
    if s is None:
        return maps_of(saved, n, saved_size, P) + 2 * P
    else:
        return s + n * P


@triton.jit
def pixel_index_of(index, n, index_size, P):
    """Address of the P numbers for the maxima over channels in row n of index."""
    return index + (n + 1) * index_size - P


@triton.jit
def update_max(maximum, argmax, value, at, EVEN: tl.constexpr):
    """Update a maximum and its argmax by a value with a higher index, at. NaN wins, then the first index.

    EVEN: argmax counts the tied elements, and at the elements of value.
    """
    better = (value > maximum) | ((value != value) & (maximum == maximum))
    if EVEN:
        argmax += tl.where(value == maximum, at, 0)
    return tl.where(better, value, maximum), tl.where(better, at, argmax)


@triton.jit
def reduce_max(maximum, argmax, AXIS: tl.constexpr, EVEN: tl.constexpr):
    """The maximum along an axis and its argmax, by the same rule. Lanes without a value must hold -inf.

    EVEN: argmax counts the tied elements; a maximum of NaN has none.
    """
    nan = tl.max((maximum != maximum).to(tl.int32), AXIS)
    result = tl.max(tl.where(maximum != maximum, float("-inf"), maximum), AXIS)
    result = tl.where(nan > 0, float("nan"), result)
    if EVEN:
        return result, tl.sum(tl.where(maximum == tl.expand_dims(result, AXIS), argmax, 0), AXIS)
    else:
        tied = (maximum == tl.expand_dims(result, AXIS)) | ((maximum != maximum) & (tl.expand_dims(nan, AXIS) > 0))
        return result, tl.min(tl.where(tied, argmax, 2147483647), AXIS)


@triton.jit
def neighbours(p, t, H, W, K: tl.constexpr):
    """The pixel under each weight t of the K x K window around each pixel p, (taps, pixels), and whether it exists."""
    h = (p // W)[None, :] + (t // K - K // 2)[:, None]
    w = (p % W)[None, :] + (t % K - K // 2)[:, None]
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W) & (t < K * K)[:, None] & (p < H * W)[None, :]
    return h * W + w, inside
