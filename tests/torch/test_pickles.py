"""Unpickling runs code: no source loads pickles from files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "train_example.py",
    *(p for f in ("cbam_fused", "garbage", "bench") for p in (ROOT / f).rglob("*.py")),
]
MODULES = {"cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pandas", "pickle", "shelve"}


def loads(source: str) -> list[str]:
    """The parts of a source that could load a pickle: imports, and calls of load() without weights_only=True."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.append(f"from {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe = name in ("torch.load", "load") and options.get("weights_only") != "True"
            if unsafe or name in ("np.load", "numpy.load", "torch.hub.load", "torch.jit.load"):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_loads_pickles(source):
    assert loads(source.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=trusted)",
        "np.load(file, allow_pickle=True)",
        "import os, pickle",
        "from pickle import loads",
    ],
)
def test_what_loads_pickles_is_found(line):
    assert loads(line) and not loads('torch.load(file, map_location="cpu", weights_only=True)')
