import os
import shutil
from pathlib import Path

import pytest
import torch
from garbage_runs import SMALL

# Before the first import of Triton, which decides by it for the whole process: without a GPU, kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill the memory of torch.empty (in Python and in C++) with NaN, or the largest integer, in every test.

    PyTorch does so in deterministic mode, so this also tests that none of our operators warns or fails in it.
    """
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def checker(monkeypatch):
    """Tensors on the CPU go to the Triton kernels, interpreted, with every load and store watched."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles its kernels in this process; with TRITON_INTERPRET=1 it interprets them")
    from triton_checker import Checker

    monkeypatch.setattr("cbam_fused.routing.wanted", "triton")
    with Checker() as checker:
        yield checker


@pytest.fixture
def small_groups(monkeypatch):
    """The Triton kernels take two images a launch, as a small L2 cache would have it."""
    from cbam_fused.triton import call

    monkeypatch.setattr(call, "images_per_launch", lambda N, image_bytes, l2_bytes: min(N, 2))


@pytest.fixture
def fresh_warnings():
    """Warnings about state_dicts appear anew: each appears once in a process."""
    from cbam_fused.variants import state_dict

    state_dict._warn.cache_clear()


def pytest_collection_modifyitems(config, items) -> None:
    """Run the tests marked ``cuda`` first, since PyTorch caches facts about the GPU and must see one."""
    if "CBAM_FUSED_SLOW" not in os.environ:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    items.sort(key=lambda item: item.get_closest_marker("cuda") is None)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and PyTorch sees none"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Hide the GPU from tests not marked ``cuda``, from their fixtures of any scope, and from their subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("cuda"):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return (yield)


def pytest_report_header() -> str:
    from cbam_fused.ops import registry

    cpu = registry.cpu_missing or f"CPU kernels, {registry.cpu_capability()}"
    mode = "interpreted" if os.environ.get("TRITON_INTERPRET") == "1" else "compiled"
    triton = registry.triton_missing or f"triton {mode}"
    return f"cbam_fused: {cpu}, {torch.get_num_threads()} threads; {triton}"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A sample set of 2 training pictures and 1 validation picture per class."""
    from garbage.samples import draw

    folder = tmp_path_factory.mktemp("drawn") / "set"
    draw.draw_sample_set(folder, counts={"train": 2, "val": 1})
    return folder


@pytest.fixture(scope="session")
def run(drawn, tmp_path_factory) -> Path:
    """A finished run of the garbage classifier on the small set."""
    from train_example import main

    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "--data", str(drawn), "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """Training writes no report, which takes longer than all the rest, and the plots of an evaluation are empty.

    test_train.py, test_report.py, test_fonts.py and test_compare.py have whole reports.
    """
    monkeypatch.setattr("garbage.train.loop.write_report", lambda run: None)
    monkeypatch.setattr("garbage.report.write.save_png", lambda figure, path: path.write_bytes(b""))
    monkeypatch.setattr("garbage.report.write.svg", lambda figure: "<svg></svg>")


@pytest.fixture
def two_classes(drawn, tmp_path) -> Path:
    """Class folders without a split: 10 pictures of shoes, 5 of paper."""
    folder = tmp_path / "two"
    for name, count in (("shoes", 10), ("paper", 5)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shutil.copy(drawn / "train" / name / "0000.png", folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """For bitwise comparison with another process: the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
