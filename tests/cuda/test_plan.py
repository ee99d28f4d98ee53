"""The choice between the schedules of the CUDA kernels: a function of shape, type and device, without a GPU."""

import pytest
from cuda_plans import DEVICES, device, plans, problem
from emulation import driver

# Forward and backward of float16, by device and shape: ResNet's maps in a batch of 64.
MAPS = [(64, 56), (128, 28), (256, 14), (512, 7), (256, 56), (512, 28), (1024, 14), (2048, 7)]
STAGED = ("staged", "staged")
# Of 227 KB of shared memory two blocks have room for the middle maps.
HOPPER = [STAGED, (2, 2), (2, 2), (2, 2), STAGED, STAGED, (2, "staged"), (2, "staged")]
CHOICES = {
    # There are no clusters.
    "A100": [STAGED, STAGED, (1, "staged"), (1, 1), STAGED, STAGED, STAGED, STAGED],
    "L4": [STAGED, STAGED, STAGED, (1, "staged"), STAGED, STAGED, STAGED, STAGED],
    "H100": HOPPER,
    "H200": HOPPER,
    "B200": HOPPER,
    # Blocks of 99 KB.
    "RTX 5090": [STAGED, STAGED, (2, "staged"), (2, 2), STAGED, STAGED, STAGED, STAGED],
}


@pytest.mark.parametrize("name", CHOICES)
def test_maps_of_resnets(name):
    assert [plans(problem(64, C, side), name) for C, side in MAPS] == CHOICES[name]


def test_scratch_shrinks_until_a_block_fits():
    """These images miss 227 KB with as many groups of threads as there could be."""
    assert plans(problem(64, 128, 28, "bf16", channels_last=True), "H100") == (2, 2)
    assert plans(problem(64, 2048, 7, "f32", channels_last=True), "H100")[0] == 2
    assert plans(problem(64, 1024, 14, "bf16"), "H100")[0] == 2


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
                    assert chosen.cluster == 1 or DEVICES[name][-1]
                    forced = plan(p, device(name), str(chosen.cluster))  # which is refused if it does not fit
                    assert (forced.schedule, forced.cluster) == (chosen.schedule, chosen.cluster)


def test_small_images_fit_into_one_block_without_clusters():
    for name in ("A100", "L4", "RTX 4090"):
        assert plans(problem(256, 512, 7), name)[0] == 1
    assert plans(problem(256, 256, 7), "T4")[0] == 1


def test_of_few_images_each_gets_two_blocks_or_the_staged_schedule():
    assert plans(problem(256, 512, 7), "H100") == (1, 1)
    assert plans(problem(64, 512, 7), "H100") == (2, 2)
    assert plans(problem(1, 512, 28), "H100") == STAGED


@pytest.mark.parametrize("name", DEVICES)
def test_what_only_the_staged_schedule_serves(name):
    for p in (problem(64, 512, 7, "f64"), problem(64, 3, 5), problem(0, 512, 7), problem(64, 64, 1024, "f32")):
        assert plans(p, name) == STAGED
    shifted = problem(256, 512, 7)
    shifted.x = (1 << 20) + 2
    assert plans(shifted, name) == STAGED


def test_ptx_of_older_gpus_has_no_clusters_on_new_ones():
    """A build for 8.0+PTX, on an H100: what the driver makes of that PTX has no code for clusters."""
    module = driver.module("plain")
    assert module.has_clusters()
    module.set_ptx_version(80)
    try:
        assert not module.has_clusters()
    finally:
        module.set_ptx_version(90)


@pytest.mark.parametrize("name", DEVICES)
def test_launches_begin_early_where_the_code_waits_for_those_before_them(name):
    module = driver.module("plain")
    for plan in (module.plan_forward, module.plan_backward):
        assert plan(problem(64, 256, 56), device(name), "staged").programmatic == DEVICES[name][-1]


def test_the_override_is_obeyed():
    assert plans(problem(64, 512, 7), "H100", "staged") == STAGED
    assert plans(problem(64, 512, 7), "H100", "dataflow") == ("dataflow", "dataflow")
    assert plans(problem(64, 512, 7), "H100", "1") == (1, 1)
    assert plans(problem(64, 512, 7), "H100", "auto") == plans(problem(64, 512, 7), "H100")


def test_dataflow_has_two_blocks_a_multiprocessor_and_a_third_of_l2():
    plan = driver.module("plain").plan_forward(problem(64, 256, 56), device("H100"), "dataflow")
    assert (plan.blocks, plan.window) == (264, (50 << 20) // 3)


@pytest.mark.parametrize(
    "p,name,wanted,message",
    [
        ((64, 512, 7), "H100", "3", "=3: must be auto, staged, dataflow or a number of blocks: 1 or 2"),
        ((64, 512, 7), "H100", "fast", "=fast: must be auto, staged, dataflow or a number of blocks"),
        ((64, 512, 7), "A100", "dataflow", "=dataflow: it is compiled for compute capability 9.0 and newer"),
        ((64, 512, 7), "A100", "2", "there are no clusters of blocks"),
        ((64, 256, 56, "f32"), "L4", "1", "bytes of shared memory, and may have 101376"),
        ((64, 512, 7, "f64"), "H100", "1", "float64 has only the staged schedule"),
        ((64, 512, 7, "f64"), "H100", "dataflow", "float64 has only the staged schedule"),
        ((64, 3, 5), "H100", "1", "an image must be a multiple of 16 bytes"),
    ],
)
def test_an_override_that_cannot_be(p, name, wanted, message):
    with pytest.raises(ValueError, match=f"CBAM_FUSED_CUDA_SCHEDULE={wanted}: ") as raised:
        plans(problem(*p), name, wanted)
    assert message in str(raised.value)
