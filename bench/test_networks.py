"""The CBAM tax: training and inference of whole networks without CBAM and with each implementation."""

import pytest
import torch

from . import cases, networks, timing


def pytest_generate_tests(metafunc):
    names, modes = list(networks.NETWORKS), ["training", "inference"]
    if metafunc.config.getoption("--quick"):
        names, modes = names[:1], modes[:1]
    metafunc.parametrize("mode", modes)
    metafunc.parametrize("name", names)
    metafunc.parametrize("device", cases.DEVICES)


@pytest.fixture(scope="module")
def photos(request, quick, tmp_path_factory):
    count, side = (4, 96) if quick else (16, 160)
    return networks.batch(request.config.getoption("--data"), tmp_path_factory.mktemp("images"), count, side)


def test_network(device, name, mode, photos, benchmark, add, quick):
    torch._dynamo.reset()
    images, labels = (t.to(device) for t in photos)
    built = {variant: networks.build(name, variant, images) for variant in networks.VARIANTS}
    steps = networks.Steps(built, images, labels, mode == "training")
    wrong = networks.disagreements(name, steps)
    if wrong:
        pytest.fail(f"not timed, the results are wrong: {wrong}")
    count = timing.rounds_for(5 if quick else 50, 5, steps)
    steps.clear()
    benchmark.pedantic(steps, rounds=count, iterations=1)
    entry = {
        "device": device,
        "network": name,
        "mode": mode,
        "images": list(images.shape),
        "rounds": count,
        "seconds": steps.seconds(),
        "host seconds": steps.seconds(steps.host),
        "tax": steps.tax(),
    }
    benchmark.extra_info.update(entry)
    add("networks", entry)
