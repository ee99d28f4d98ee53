"""The pure functions that choose tiles, warps and groups of images."""

import pytest

from cbam_fused.triton import tiles

MIB = 1 << 20


@pytest.mark.parametrize(
    ("N", "image_bytes", "l2_bytes", "expected"),
    [
        (32, 2 * MIB, 40 * MIB, 10),  # half of the cache
        (8, 2 * MIB, 40 * MIB, 8),  # no more than there are
        (32, 2 * MIB, 0, 32),  # unknown cache: no groups
        (32, 2 * MIB, 6 * MIB, 32),  # a group of 2 MiB is over sooner than its launches
        (32, 7 * MIB, 40 * MIB, 2),
        (32, 21 * MIB, 40 * MIB, 32),  # not even one image fits
        (0, MIB, 40 * MIB, 0),
        (5, 0, 40 * MIB, 5),
    ],
)
def test_images_per_launch(N, image_bytes, l2_bytes, expected):
    assert tiles.images_per_launch(N, image_bytes, l2_bytes) == expected


@pytest.mark.parametrize(
    ("stride", "expected"), [(1, 1), (3136, 16), (196, 4), (49, 1), (64, 16), (24, 8), (2**20, 16)]
)
def test_alignment(stride, expected):
    assert tiles.alignment(stride) == expected


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("reduces", ["pixels", "channels", "none"])
def test_tiles_of_large_images_are_full_and_their_rows_long(reduces, channels_last, wide):
    for warp_size in (32, 64):
        tile = tiles.tile(reduces, 256, 3136, channels_last, wide, warp_size)
        values = tiles.VALUES[reduces] // (2 if wide else 1)
        assert tile.channels * tile.pixels == values * tiles.THREADS
        assert tile.warps * warp_size == tiles.THREADS
        row = tile.channels if channels_last else tile.pixels
        assert row * (8 if wide else 2) >= 128, "a row of a tile is at least one cache line, also of half types"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 5), (2048, 49), (64, 12544), (5, 7)])
def test_tiles_are_powers_of_two_no_larger_than_the_image_needs(size, channels_last):
    for reduces in ("pixels", "channels", "none"):
        tile = tiles.tile(reduces, *size, channels_last, False, 32)
        for side, whole in zip(tile[:2], size, strict=True):
            assert side & (side - 1) == 0 and side < 2 * whole
        assert 1 <= tile.warps <= 8 and tile.warps & (tile.warps - 1) == 0


@pytest.mark.parametrize(("C", "R"), [(1, 1), (64, 4), (2048, 128), (40, 21), (64, 3000)])
def test_tiles_of_the_mlp_hold_all_hidden_units(C, R):
    tile = tiles.mlp_tile(C, R, False, 32)
    assert R <= tile.pixels < 2 * R and 1 <= tile.channels < 2 * C


@pytest.mark.parametrize(
    ("name", "l2", "gigabytes_a_second", "pays"),
    [("L4", 48, 300, True), ("RTX 4090", 72, 1008, True), ("A100", 40, 2039, False), ("H100", 50, 3352, False)],
)
def test_groups_pay_where_memory_is_slow(name, l2, gigabytes_a_second, pays):
    assert tiles.groups_pay(l2 << 20, gigabytes_a_second * 1000) == pays


def test_groups_of_unknown_memory_do_not_pay():
    assert not tiles.groups_pay(50 << 20, 0)
