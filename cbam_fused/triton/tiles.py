"""Pure functions that choose sizes: the tile of each pass, and the images of a launch."""

from typing import NamedTuple

# Threads of a program if the tile is large enough; values of a tile per thread, by the axis that the pass reduces. As
# many values as registers allow keep several 16-byte loads in flight. A float64 sum takes two registers.
THREADS = 256
VALUES = {"pixels": 16, "channels": 16, "none": 8}
# Tiles of a program: enough to amortise its start, few enough that small batches fill a GPU.
LOOP = 8

# The longest side of a tile along contiguous memory, by the axis that the pass reduces and by layout. Reductions along
# contiguous memory take long rows. Reductions across it, and passes without one, take at least 128 bytes of a row.
LONGEST = {
    ("pixels", "nchw"): 256,
    ("pixels", "nhwc"): 64,
    ("channels", "nchw"): 64,
    ("channels", "nhwc"): 256,
    ("none", "nchw"): 128,
    ("none", "nhwc"): 128,
}

L2_BANDWIDTH, LAUNCHES = 5_500_000, 20  # bytes per microsecond; microseconds of the launches of a group
# The launches of a smaller group take longer than the memory traffic that they save.
SMALLEST_GROUP = 8 << 20


class Tile(NamedTuple):
    channels: int
    pixels: int
    warps: int


def power_of_two(n: int) -> int:
    """The least power of two that is at least n, for n >= 0."""
    return 1 << max(0, n - 1).bit_length()


def tile(reduces: str, C: int, P: int, channels_last: bool, wide: bool, warp_size: int) -> Tile:
    """The tile of a pass over C channels and P pixels. It reduces "pixels", "channels" or "none".

    wide: sums are float64 and take two registers each.
    """
    longest = LONGEST[reduces, "nhwc" if channels_last else "nchw"]
    values = VALUES[reduces] // 2 if wide else VALUES[reduces]
    contiguous, across = (C, P) if channels_last else (P, C)
    long = min(power_of_two(contiguous), longest)
    short = min(power_of_two(across), values * THREADS // long)
    channels, pixels = (long, short) if channels_last else (short, long)
    return Tile(channels, pixels, warps(long * short, values, warp_size))


def mlp_tile(C: int, R: int, wide: bool, warp_size: int) -> Tile:
    """The tile of the MLP's weights: all R hidden units, as Tile.pixels, and as many channels as fit.

    A program has twice the usual threads, because an image has only one program.
    """
    values = VALUES["none"] // 2 if wide else VALUES["none"]
    hidden = power_of_two(R)
    channels = min(power_of_two(C), max(1, 2 * values * THREADS // hidden))
    return Tile(channels, hidden, warps(channels * hidden, values, warp_size, 2 * THREADS))


def warps(elements: int, values: int, warp_size: int, threads: int = THREADS) -> int:
    """Warps for a tile with this number of elements, and of values per thread."""
    return max(1, min(threads, elements // values) // warp_size)


def alignment(stride: int) -> int:
    """The largest power of two, at most 16, that divides the stride between the contiguous rows of an image."""
    return min(16, stride & -stride)


def groups_pay(l2_bytes: int, bandwidth: int) -> bool:
    """Whether a group of images that fills half of L2 saves more time than its launches take.

    bandwidth: of memory, in bytes per microsecond; 0 if unknown.
    """
    group = l2_bytes / 2
    return bandwidth > 0 and group / bandwidth - group / L2_BANDWIDTH > LAUNCHES


def images_per_launch(N: int, image_bytes: int, l2_bytes: int) -> int:
    """Images that go through all passes together, so that the later passes find them in an L2 cache of this size.

    image_bytes: bytes of one image that the passes access. They may fill half of the cache, because it does not
    evict lines in order. The result is N if the cache is too small or its size unknown (0).
    """
    images = l2_bytes // 2 // max(1, image_bytes)
    return N if images * image_bytes < SMALLEST_GROUP else min(N, images)
