"""The benchmark suite: it reports no wrong or impossible results, and writes the document from a file of results."""

import copy
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cbam_fused
from bench import cases, conftest, memory, networks, report, test_layers, timing
from cbam_fused.surgery.selection import find_cbams

CASE = cases.Case("cpu", (3, 16, 9, 9), "float32", "nchw")


class Benchmark:
    """Replaces the fixture of pytest-benchmark."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, call, rounds, iterations):
        for _ in range(rounds):
            call()


def run(monkeypatch, fused: type[torch.nn.Module] = cbam_fused.CBAM) -> dict:
    """The results of a case, without torch.compile, which is slow."""
    build = cases.implementations

    def implementations(weights):
        modules = build(weights)
        modules["fused"].__class__ = fused
        return {name: modules[name] for name in ("eager", "fused")}

    monkeypatch.setattr(cases, "implementations", implementations)
    results = {"layers": [], "refused": []}
    try:
        test_layers.test_layer(CASE, Benchmark(), lambda kind, e: results[kind].append(e), results, quick=True)
    except pytest.fail.Exception as error:
        results["refused"].append(str(error))
    return results


@pytest.fixture
def slow_enough(monkeypatch):
    """No case is refused for its time, since times vary on a busy machine."""
    monkeypatch.setattr(timing, "impossible", lambda seconds, x_bytes: "")


def test_a_right_case_is_reported(monkeypatch, slow_enough):
    results = run(monkeypatch)
    assert results["refused"] == []
    (layer,) = results["layers"]
    assert set(layer["seconds"]["forward"]) == {"eager", "fused", "clone", "copy"}
    assert set(layer["seconds"]["both"]) == set(layer["seconds"]["backward"]) == {"eager", "fused"}
    assert all(t > 0 for by_name in layer["seconds"].values() for t in by_name.values())
    assert 1 < layer["kept"]["fused"] < layer["kept"]["eager"]


class Scaled(cbam_fused.CBAM):
    def forward(self, x):
        return 1.01 * super().forward(x)


class WrongGradient(cbam_fused.CBAM):
    def forward(self, x):
        y = super().forward(x)
        return y + 0.01 * (y - y.detach())


class WrongWithoutGradients(cbam_fused.CBAM):
    def forward(self, x):
        y = super().forward(x)
        return y if torch.is_grad_enabled() else 1.01 * y


class WrongLastImage(cbam_fused.CBAM):
    def forward(self, x):
        y = super().forward(x)
        return torch.cat([y[:-1], 1.01 * y[-1:]])


class NotANumber(cbam_fused.CBAM):
    def forward(self, x):
        return super().forward(x) * torch.nan


@pytest.mark.parametrize("fused", [Scaled, WrongGradient, WrongWithoutGradients, WrongLastImage, NotANumber])
def test_a_wrong_result_has_no_figures(monkeypatch, slow_enough, fused):
    results = run(monkeypatch, fused)
    assert results["layers"] == []
    assert "not timed, the results of the fused module are wrong" in results["refused"][0]


@pytest.mark.parametrize(("name", "moved"), [("forward", 2), ("backward", 3), ("both", 5)])
def test_a_bandwidth_above_the_copy_limit_is_refused(name, moved):
    # The kept copy is the faster one: 2 x 1 MB in 1 ms are 2 GB/s.
    seconds = {p: {"eager": 1.0, "fused": 1.0} for p in ("forward", "backward", "both")}
    seconds["forward"] |= {"clone": 2e-3, "copy": 1e-3}
    seconds[name]["fused"] = 1.001 * moved / 2 * 1e-3
    assert timing.impossible(seconds, 1_000_000) == ""
    seconds[name]["fused"] = 0.999 * moved / 2 * 1e-3
    assert timing.impossible(seconds, 1_000_000) == f"fused {name} 2.0 GB/s: above the 2.0 GB/s of a copy"


def test_a_case_above_the_copy_limit_has_no_figures(monkeypatch):
    measured = timing.Round.medians

    def medians(self):
        seconds = measured(self)
        seconds["both"]["fused"] = seconds["forward"]["copy"]
        return seconds

    monkeypatch.setattr(timing.Round, "medians", medians)
    results = run(monkeypatch)
    assert results["layers"] == []
    assert "fused both" in results["refused"][0]


def test_networks_must_agree_and_are_timed(tmp_path):
    images, labels = networks.batch(None, tmp_path, 2, 64)
    for training in (True, False):
        built = {variant: networks.build("resnet18", variant, images) for variant in ("none", "eager", "fused")}
        steps = networks.Steps(built | {"compile": built["eager"]}, images, labels, training)
        assert networks.disagreements("resnet18", steps) == {}
        built["fused"].layer4.cbam.__class__ = Scaled
        assert set(networks.disagreements("resnet18", steps)) == {"fused"}
        steps()
        steps()
        assert set(steps.tax()) == {"eager", "fused", "compile"}


def test_places_of_cbam_in_the_networks(tmp_path):
    images, _ = networks.batch(None, tmp_path, 1, 64)
    for name, count, last in (("resnet18", 4, "layer4.cbam"), ("resnet50", 16, "layer4.2.cbam")):
        for variant in ("eager", "fused"):
            found = [*find_cbams(networks.build(name, variant, images))]
            assert len(found) == count and found[-1] == last
    assert not find_cbams(networks.build("resnet18", "none", images))


def test_peak_memory_of_known_calls():
    class Copies(torch.nn.Module):
        def forward(self, x):
            return x.clone()  # y, and its backward makes no copy: dx is dy

    x = torch.zeros(1, 64, 256, 256, requires_grad=True)
    measured = memory.peaks({"copies": Copies()}, x, torch.zeros_like(x))
    assert measured["clone"] == pytest.approx(1, abs=0.05)
    # The gradient that stays in x.grad is a copy, because dy belongs to the caller.
    assert measured["copies"] == pytest.approx(2, abs=0.05)


def layer(shape, dtype, layout, fused) -> dict:
    seconds = {
        "forward": {"eager": 9e-3, "compile": 5e-3, "fused": fused, "clone": 1e-3, "copy": 9e-4},
        "backward": {"eager": 3e-2, "compile": 1e-2, "fused": 3 * fused},
        "both": {"eager": 4e-2, "compile": 2e-2, "fused": 4 * fused},
    }
    kinds = {"device": "cpu", "shape": shape, "dtype": dtype, "layout": layout}
    memory = {"kept": {"eager": 3.0, "compile": 2.0, "fused": 1.02}, "peak": {"clone": 1.0, "eager": 8.0, "fused": 2.1}}
    return kinds | memory | {"rounds": 5, "x_bytes": 1_000_000, "seconds": seconds}


RESULTS = {
    "machine": {"cpu": "A CPU", "cores": 2, "threads": 2, "instruction set": "AVX2", "gpu": None},
    "versions": {"python": "3.11.7", "torch": "2.14.1", "torchvision": "0.29.1"},
    "date": "2026-11-24",
    "commit": "abcdef0",
    "quick": False,
    "photos": "the drawn sample set",
    "layers": [
        layer([16, 64, 56, 56], "float32", "nchw", 2e-3),
        layer([1, 512, 7, 7], "float32", "nchw", 8e-3),
        layer([1, 512, 7, 7], "bfloat16", "nhwc", 1e-3) | {"peak": None},
    ],
    "networks": [
        {
            "device": "cpu",
            "network": "resnet18",
            "mode": "training",
            "images": [16, 3, 160, 160],
            "rounds": 5,
            "seconds": {"none": 0.5, "eager": 0.55, "compile": 0.54, "fused": 0.505},
            "tax": {"eager": [0.08, 0.1, 0.11], "compile": [0.07, 0.08, 0.09], "fused": [-0.01, 0.01, 0.02]},
        }
    ],
    "minutes": 12.5,
    "graphs": {"compiled": 3, "from torch's cache": 4},
    "refused": ["test_layer[8x2048x7x7-float32-nchw-cpu]: not timed"],
}


def test_the_document_shows_means_losses_and_what_was_refused():
    text = report.document(RESULTS)
    assert "0.62x SLOWER" in text  # compile 5 ms against fused 8 ms, forward
    assert "test_layer[8x2048x7x7-float32-nchw-cpu]: not timed" in text
    means = next(line for line in text.splitlines() if line.startswith("| cpu float32 nchw"))
    # sqrt(40/8 * 40/32) = 2.5 forward+backward against eager; the worst map against compile is the slower one above
    assert "2.5x" in means and means.replace(" ", "").endswith("|1.1x|0.62xSLOWER|")


def test_the_report_is_the_same_for_the_same_results(tmp_path):
    written = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        report.write(copy.deepcopy(RESULTS), folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert set(written[0]) == {"benchmarks.md", "benchmarks.json", "headline.png", "benchmarks.png"}
    assert written[0] == written[1]


def test_the_document_tells_how_it_is_measured_now():
    assert (report.DOCS / "benchmarks.md").read_text().count("\n" + report.METHOD) == 1


BENCH = Path(conftest.__file__).parent


@pytest.mark.parametrize(
    ("arguments", "deselected", "ran", "written"),
    [
        (["bench/"], [], 2, "bench.json"),
        ([str(BENCH)], [], 2, "bench.json"),
        (["bench/"], ["one"], 2, "bench_part.json"),
        (["bench/test_layers.py"], [], 2, "bench_part.json"),
        (["bench/"], [], 1, "bench_part.json"),
    ],
    ids=["full", "full, absolute", "-k", "a file", "stopped"],
)
def test_a_part_of_a_run_leaves_the_full_one_alone(arguments, deselected, ran, written, tmp_path, monkeypatch):
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    stash = {conftest.RESULTS: copy.deepcopy(RESULTS), conftest.STARTED: time.monotonic()}
    directory = SimpleNamespace(dir=BENCH.parent)
    config = SimpleNamespace(stash=stash, args=arguments, invocation_params=directory, earlier=[{"test": "earlier"}])
    items = [SimpleNamespace(nodeid=str(i), config=config) for i in range(2)]
    conftest.pytest_collection_finish(SimpleNamespace(config=config, items=items))
    for item in items[:ran]:
        report_made = conftest.pytest_runtest_makereport(item)
        next(report_made)
        with pytest.raises(StopIteration):
            report_made.send(SimpleNamespace(when="call", failed=False))
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name == "bench_part.json" and json.loads(path.read_text())["layers"] == RESULTS["layers"]
    items = [SimpleNamespace(nodeid=name) for name in ("earlier", *deselected)]
    terminal = SimpleNamespace(stats={"deselected": items}, section=print, write_line=print)
    conftest.pytest_terminal_summary(terminal, config)
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name == written
    assert json.loads(path.read_text())["layers"] == RESULTS["layers"]
