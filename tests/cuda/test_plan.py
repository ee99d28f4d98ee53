"""The choice between the schedules of the CUDA kernels: a function of shape, type and device, without a GPU."""

import pytest
from cuda_plans import DEVICES, device, plans, problem
from emulation import driver

# Forward and backward of float16, by device and shape: ResNet's maps in a batch of 64.
MAPS = [(64, 56), (128, 28), (256, 14), (512, 7), (256, 56), (512, 28), (1024, 14), (2048, 7)]
ALL = "64 images"
# Of 227 KB of shared memory two blocks have room for the middle maps; a row of 7 x 7 pixels is not aligned, so that
# eight are taken there, too.
HOPPER = [(ALL, ALL), (2, 2), (2, 2), (2, 2), (ALL, ALL), (ALL, ALL), (ALL, ALL), (2, 8)]
CHOICES = {
    # There are no clusters, and memory is too fast for groups.
    "A100": [(ALL, ALL), (ALL, ALL), (1, ALL), (1, 1), (ALL, ALL), (ALL, ALL), (ALL, ALL), (ALL, ALL)],
    # Memory is slow: groups that fill half of L2.
    "L4": [
        ("31 images", "20 images"),
        ("62 images", "41 images"),
        (ALL, ALL),
        (1, ALL),
        ("7 images", "5 images"),
        ("15 images", "10 images"),
        ("31 images", "20 images"),
        ("62 images", "41 images"),
    ],
    "H100": HOPPER,
    "H200": HOPPER,
    "B200": HOPPER,
    # Blocks of 99 KB.
    "RTX 5090": [(ALL, ALL), (ALL, ALL), (2, ALL), (2, 2), (ALL, ALL), (ALL, ALL), (ALL, ALL), (8, 8)],
}


@pytest.mark.parametrize("name", CHOICES)
def test_maps_of_resnets(name):
    assert [plans(problem(64, C, side), name) for C, side in MAPS] == CHOICES[name]


@pytest.mark.parametrize("name", DEVICES)
def test_what_is_chosen_fits(name):
    module = driver.module("plain")
    for C, side in MAPS:
        for dtype in ("f32", "f16", "bf16"):
            for channels_last in (False, True):
                p = problem(64, C, side, dtype, channels_last)
                for plan in (module.plan_forward, module.plan_backward):
                    chosen = plan(p, device(name))
                    if chosen.schedule == module.Schedule.staged:
                        continue
                    assert chosen.cluster <= DEVICES[name][-1]
                    forced = plan(p, device(name), str(chosen.cluster))  # which is refused if it does not fit
                    assert (forced.schedule, forced.cluster) == (chosen.schedule, chosen.cluster)


def test_small_images_fit_into_one_block_without_clusters():
    for name in ("A100", "L4", "RTX 4090"):
        assert plans(problem(256, 512, 7), name)[0] == 1
    assert plans(problem(256, 256, 7), "T4")[0] == 1


def test_few_images_get_more_blocks_or_the_staged_schedule():
    assert plans(problem(256, 512, 7), "H100") == (1, 1)
    assert plans(problem(64, 512, 7), "H100") == (2, 2)
    assert plans(problem(8, 64, 56), "H100") == (8, 8)
    assert plans(problem(1, 512, 28), "H100") == (8, "1 images")


@pytest.mark.parametrize("name", DEVICES)
def test_what_only_the_staged_schedule_serves(name):
    for p in (problem(64, 512, 7, "f64"), problem(64, 3, 5), problem(0, 512, 7), problem(64, 64, 1024, "f32")):
        assert all("images" in str(plan) for plan in plans(p, name))
    shifted = problem(256, 512, 7)
    shifted.x = (1 << 20) + 2
    assert all("images" in str(plan) for plan in plans(shifted, name))


def test_the_runtime_is_asked_for_the_largest_cluster():
    """What it refuses has what every device with clusters has."""
    assert driver.module("plain").largest_cluster(227 << 10) == 16
    assert driver.module("plain").largest_cluster(1 << 30) == 8


def test_ptx_of_older_gpus_has_no_clusters_on_new_ones():
    """A build for 8.0+PTX, on an H100: what the driver makes of that PTX has no code for clusters."""
    module = driver.module("plain")
    module.set_ptx_version(80)
    try:
        assert module.largest_cluster(227 << 10) == 1
    finally:
        module.set_ptx_version(90)


def test_groups_fill_half_of_l2_where_that_saves_more_than_launches_take():
    assert plans(problem(4096, 64, 56), "L4") == ("31 images", "20 images")
    assert plans(problem(8, 64, 56), "L4") == ("8 images", "8 images")
    assert plans(problem(4096, 64, 56), "A100") == ("4096 images", "4096 images")


def test_the_override_is_obeyed():
    assert plans(problem(64, 512, 7), "H100", "staged") == ("64 images", "64 images")
    assert plans(problem(64, 512, 7), "H100", "4") == (4, 4)
    assert plans(problem(64, 512, 7), "H100", "auto") == plans(problem(64, 512, 7), "H100")


@pytest.mark.parametrize(
    "p,name,wanted,message",
    [
        ((64, 512, 7), "H100", "3", "=3: must be auto, staged or a number of blocks: 1, 2, 4, 8 or 16"),
        ((64, 512, 7), "H100", "fast", "=fast: must be auto, staged or a number of blocks"),
        ((64, 512, 7), "A100", "2", "this device has clusters of at most 1 blocks"),
        ((64, 512, 7), "RTX 5090", "16", "this device has clusters of at most 8 blocks"),
        ((64, 256, 56, "f32"), "L4", "1", "bytes of shared memory, and may have 101376"),
        ((64, 512, 7, "f64"), "H100", "1", "float64 has only the staged schedule"),
        ((64, 3, 5), "H100", "1", "an image must be a multiple of 16 bytes"),
    ],
)
def test_an_override_that_cannot_be(p, name, wanted, message):
    with pytest.raises(ValueError, match=f"CBAM_FUSED_CUDA_SCHEDULE={wanted}: ") as raised:
        plans(problem(*p), name, wanted)
    assert message in str(raised.value)
