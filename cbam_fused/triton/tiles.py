"""Sizes: the tile of each pass by the class of its shape, and how many images one launch takes. All of it pure."""

from typing import NamedTuple

# Elements of a tile, in elements of 4 bytes: 16 a thread, so that two to four 16-byte loads of each are in flight.
TILE = 4096
# Tiles that a program goes through: what it sets up must be little beside them, and small batches still fill a GPU.
LOOP = 8

# The longest side of a tile along contiguous memory, by the axis that the pass reduces and by layout. Reductions along
# contiguous memory take long rows, those across it (and a pass without any) at least 128 bytes of each.
LONGEST = {
    ("pixels", "nchw"): 256,
    ("pixels", "nhwc"): 64,
    ("channels", "nchw"): 64,
    ("channels", "nhwc"): 256,
    ("none", "nchw"): 128,
    ("none", "nhwc"): 128,
}

# Below this a launch takes longer than the memory traffic that a group of images can save.
SMALLEST_GROUP = 8 << 20


class Tile(NamedTuple):
    channels: int
    pixels: int
    warps: int


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def tile(reduces: str, C: int, P: int, channels_last: bool, wide: bool) -> Tile:
    """The tile of a pass over an image of C channels and P pixels that reduces "pixels", "channels" or "none".

    wide: sums are float64, which takes two registers for each value.
    """
    elements = TILE // 2 if wide else TILE
    contiguous, across = (C, P) if channels_last else (P, C)
    long = min(power_of_two(contiguous), LONGEST[reduces, "nhwc" if channels_last else "nchw"])
    wide_side = min(power_of_two(across), elements // long)
    channels, pixels = (long, wide_side) if channels_last else (wide_side, long)
    return Tile(channels, pixels, warps(long * wide_side * (2 if wide else 1)))


def mlp_tile(C: int, R: int, wide: bool) -> Tile:
    """The tile of the weights (hidden units in place of pixels): all R at once, and as many channels as go with them."""
    hidden = power_of_two(R)
    channels = min(power_of_two(C), max(1, (TILE // 2 if wide else TILE) * 2 // hidden))
    return Tile(channels, hidden, warps(channels * hidden * (2 if wide else 1)))


def warps(elements: int) -> int:
    return min(8, max(1, elements // 512))


def alignment(stride: int) -> int:
    """The largest power of two up to 16 in the stride between the contiguous rows of an image."""
    return min(16, stride & -stride)


def images_per_launch(N: int, image_bytes: int, l2_bytes: int) -> int:
    """How many images go through all passes together so that the later passes find them in an L2 cache of this size.

    image_bytes: what the passes read and write of one image. Half of the cache is counted on, since lines are not
    replaced in order. All N at once where the cache is too small or of unknown size (0).
    """
    images = l2_bytes // 2 // max(1, image_bytes)
    return N if images * image_bytes < SMALLEST_GROUP else min(N, images)
