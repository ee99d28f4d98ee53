"""Options; the results of a run, with the machine's description, to a JSON file and the terminal."""

import datetime
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torchvision
from torch._dynamo.utils import counters

from cbam_fused.ops import registry

from . import tables, timing

ROOT = Path(__file__).parents[1]
SAMPLE_SET = "the drawn sample set"

RESULTS = pytest.StashKey[dict]()
STARTED = pytest.StashKey[float]()
LEFT = pytest.StashKey[set[str]]()  # the cases that have not run yet


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="a subset of the grid, few repetitions, one small network")
    parser.addoption("--data", type=Path, help="a folder of class folders with photos for the network benchmarks")


def pytest_configure(config):
    config.option.benchmark_quiet = True  # its table has the time of a round of all implementations
    torch.backends.cudnn.allow_tf32 = False  # the gate checks float32
    timing.keep_freed_memory()
    data = config.getoption("--data")
    config.stash[STARTED] = time.monotonic()
    config.stash[RESULTS] = {
        **environment(),
        "quick": config.getoption("--quick"),
        "photos": SAMPLE_SET if data is None else f"photos of the folder {data.name} (resnet18 compiled: {SAMPLE_SET})",
        "layers": [],
        "networks": [],
        "refused": [],
    }
    for line in config.earlier:
        for kind, entry in line["properties"].items():
            config.stash[RESULTS][kind].append(entry)


def environment() -> dict:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "machine": {
            "cpu": cpu[1] if cpu else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instruction set": registry.cpu_capability(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or "unknown",
    }


@pytest.fixture(scope="session")
def results(request) -> dict:
    return request.config.stash[RESULTS]


@pytest.fixture(scope="session")
def quick(request) -> bool:
    return request.config.getoption("--quick")


def pytest_collection_finish(session):
    session.config.stash[LEFT] = {item.nodeid for item in session.items}


@pytest.fixture
def add(request, results, record_property):
    """add(kind, entry): a case's entry in results, and in the record of --record."""

    def add(kind: str, entry: dict) -> None:
        results[kind].append(entry)
        record_property(kind, entry)

    return add


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A failed case has no figures; the results record it. They are written after every case."""
    report = yield
    if report.when == "call":
        item.config.stash[LEFT].discard(item.nodeid)
        if report.failed:
            message = f"{item.name}: {report.longrepr.reprcrash.message}"
            item.config.stash[RESULTS]["refused"].append(message)
            item.user_properties.append(("refused", message))
        _write(item.config, _path(item.config, complete=False))
    return report


def _path(config, complete: bool) -> Path:
    name = "bench_quick" if config.stash[RESULTS]["quick"] else "bench"
    return ROOT / "runs" / f"{name}{'' if complete else '_part'}.json"


def _write(config, path: Path) -> None:
    results, graphs = config.stash[RESULTS], counters["inductor"]
    results["minutes"] = round((time.monotonic() - config.stash[STARTED]) / 60, 1)
    results["graphs"] = {"compiled": graphs["fxgraph_cache_miss"], "from torch's cache": graphs["fxgraph_cache_hit"]}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    if not results["layers"] and not results["networks"]:
        return
    # A full run collects this folder, not single files; an interrupted run has cases left.
    given = {(config.invocation_params.dir / argument).resolve() for argument in config.args}
    earlier = {line["test"] for line in config.earlier}
    deselected = [item for item in terminalreporter.stats.get("deselected", []) if item.nodeid not in earlier]
    part = _path(config, complete=False)
    path = _path(config, Path(__file__).parent in given and not deselected and not config.stash[LEFT])
    _write(config, path)
    if path != part:
        part.unlink(missing_ok=True)
    terminalreporter.section("what CBAM costs")
    for line in tables.terminal(results):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"\nwritten to {path.relative_to(ROOT)}; python -m bench.report makes the document")
