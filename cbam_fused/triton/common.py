"""What all kernels share: addresses in both layouts, the rule of maxima, the neighbours of a pixel.

To a kernel an image is a matrix of C channels and P = H W pixels, and every tile is (channels, pixels). In NCHW pixels
are contiguous, in NHWC (channels_last) channels are; the constexpr CHANNELS_LAST is all that tells them apart.

A row of saved begins with POOLS C numbers, the pools, behind which g lies, and ends with 3 P, the maps and s. A row of
index begins with what belongs to the maxima over pixels and ends with what belongs to those over channels: their places
or, with EVEN, how many elements reach them.
"""

import triton
import triton.language as tl

TAPS = tl.constexpr(16)  # of the window, that are gathered together


@triton.jit
def wait_for_launch(PDL: tl.constexpr):
    """With PDL, programmatic dependent launch: the next launch may begin, and what the launches before wrote is there.

    Every kernel begins with it, before it loads or stores anything.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """size itself, a multiple of ALIGN, in a form that shows it: what makes loads as wide as ALIGN allows."""
    return size // ALIGN * ALIGN


@triton.jit
def places(c, p, C, P, CHANNELS_LAST: tl.constexpr):
    """Offsets of the tile (c, p) in its image; of 32 bits, since operators.py takes no larger images."""
    if CHANNELS_LAST:
        return p[None, :] * C + c[:, None]
    else:
        return c[:, None] * P + p[None, :]


@triton.jit
def image_of(tensor, n, C, P):
    """Where image n starts in an (N, C, P) tensor; n is int64 here and below, so the tensor has any size."""
    return tensor + n * C * P


@triton.jit
def maps_of(saved, n, saved_size, P):
    """In row n of saved: mean_c P, max_c P, s P."""
    return saved + (n + 1) * saved_size - 3 * P


@triton.jit
def spatial_gate_of(s, saved, n, saved_size, P):
    """Row n of s, (N, P), or without s the one in saved."""
    if s is None:
        return maps_of(saved, n, saved_size, P) + 2 * P
    else:
        return s + n * P


@triton.jit
def pixel_index_of(index, n, index_size, P):
    """In row n of index: what belongs to the P maxima over channels."""
    return index + (n + 1) * index_size - P


@triton.jit
def later_max(best, place, value, at, EVEN: tl.constexpr):
    """The maximum so far and its place, and then a value at a later place: NaN wins, then the first place.

    EVEN: place is how many have reached the maximum, at how many the value stands for.
    """
    better = (value > best) | ((value != value) & (best == best))
    if EVEN:
        place += tl.where(value == best, at, 0)
    return tl.where(better, value, best), tl.where(better, at, place)


@triton.jit
def max_along(best, place, AXIS: tl.constexpr, EVEN: tl.constexpr):
    """The maxima along an axis and their places, by the same rule. Lanes without a value hold -inf, place any.

    EVEN: how many reach the maximum; none reaches NaN.
    """
    nan = tl.max((best != best).to(tl.int32), AXIS)
    top = tl.max(tl.where(best != best, float("-inf"), best), AXIS)
    top = tl.where(nan > 0, float("nan"), top)
    if EVEN:
        return top, tl.sum(tl.where(best == tl.expand_dims(top, AXIS), place, 0), AXIS)
    else:
        is_top = (best == tl.expand_dims(top, AXIS)) | ((best != best) & (tl.expand_dims(nan, AXIS) > 0))
        return top, tl.min(tl.where(is_top, place, 2147483647), AXIS)


@triton.jit
def neighbours(p, t, H, W, K: tl.constexpr):
    """For each tap t of a K x K window around each pixel p, (taps, pixels): the pixel there, and if it is inside."""
    h = (p // W)[None, :] + (t // K - K // 2)[:, None]
    w = (p % W)[None, :] + (t % K - K // 2)[:, None]
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W) & (t < K * K)[:, None] & (p < H * W)[None, :]
    return h * W + w, inside
