"""The build: its imports, the Pythons of a wheel, and builds without some parts."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import build_kernels
import pytest
import setup_script
import torch
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

ROOT = setup_script.ROOT
OURS = {path.stem for path in (ROOT / "_build").glob("*.py")}
SCRIPTS = [ROOT / "setup.py", *(ROOT / "_build").glob("*.py")]
NETWORK = {"asyncio", "ftplib", "http", "socket", "ssl", "urllib", "xmlrpc"}


def imported(script: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_build_imports_neither_torch_nor_the_network(script):
    """It needs no build helpers of torch, and downloads nothing."""
    assert imported(script) <= {*sys.stdlib_module_names, *OURS, "ninja", "setuptools"} - NETWORK


@pytest.mark.parametrize("free_threaded", [False, True])
def test_a_wheel_is_for_every_python_with_a_lock(free_threaded, monkeypatch):
    """A free-threaded Python has no limited API: its wheel is for this version only."""
    arguments = setup_script.run(monkeypatch, free_threaded)["arguments"]
    tag = {} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}}
    assert arguments["options"] == tag
    assert [ext.py_limited_api for ext in arguments["ext_modules"]] == [not free_threaded] * 2


def test_max_jobs(monkeypatch):
    """As for other PyTorch extensions: if memory is short, or others need the cores."""
    monkeypatch.setenv("MAX_JOBS", "3")
    assert build_kernels.jobs() == 3
    for no_number in ("auto", "0", "-1", ""):
        monkeypatch.setenv("MAX_JOBS", no_number)
        assert build_kernels.jobs() == os.cpu_count()
    monkeypatch.delenv("MAX_JOBS")
    assert build_kernels.jobs() == os.cpu_count()


@pytest.mark.parametrize("with_cuda", [False, True])
def test_a_build_leaves_no_older_cuda_kernels_behind(with_cuda, tmp_path, monkeypatch):
    """An editable one, which writes beside the sources: once with nvcc, then without."""
    names = setup_script.run(monkeypatch)
    made = {name: tmp_path / f"{name}.so" for name in ["_C", "_C_cuda"][: 1 + with_cuda]}
    kernels = SimpleNamespace(
        torch=SimpleNamespace(version="2.14.1"),
        compiler=SimpleNamespace(version="g++"),
        isas=["generic"],
        cuda="not built",
        build=lambda folder: made,
    )
    monkeypatch.setitem(names["BuildKernels"].run.__globals__, "Kernels", lambda: kernels)
    monkeypatch.setattr(build_ext, "run", lambda self: None)
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "cbam_fused"
    package.mkdir()
    for name in ("_C.abi3.so", "_C_cuda.abi3.so"):
        (package / name).touch()
    build = names["BuildKernels"](Distribution({"name": "cbam_fused", "version": "0.1.0"}))
    build.inplace = True
    build.extensions = [Extension(f"cbam_fused.{name}", []) for name in ("_C", "_C_cuda")]
    build.run()
    left = {path.name for path in package.iterdir()}
    assert left == {"_C.abi3.so", "_build_info.json", *["_C_cuda.abi3.so"][:with_cuda]}
    assert len(build.extensions) == 1 + with_cuda


def build(target: Path, **variables) -> subprocess.CompletedProcess:
    """A build of this machine's instruction set only, which reuses objects of an earlier one with the same flags."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(target)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CBAM_FUSED", "CXXFLAGS"))}
    env |= {"CBAM_FUSED_NATIVE": "1", "CBAM_FUSED_CUDA": "0"} | variables
    return subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def built(target: Path) -> tuple[set[str], dict]:
    files = {path.name.split(".")[0] for path in (target / "cbam_fused").glob("*.so")}
    return files, json.loads((target / "cbam_fused" / "_build_info.json").read_text())


def test_what_is_built_is_not_built_again(tmp_path):
    first, second = build(tmp_path / "1"), build(tmp_path / "2")
    assert first.returncode == second.returncode == 0, first.stdout + second.stdout
    assert "compile" not in second.stdout and "link" not in second.stdout, second.stdout
    assert built(tmp_path / "1") == built(tmp_path / "2")
    libraries, info = built(tmp_path / "2")
    # The kernels of avx512bf16 are for bfloat16 alone, and take the others from avx512.
    assert libraries == {"_C"} and (len(info["cpu"]) == 1 or info["cpu"] == ["avx512", "avx512bf16"])


# Smoke tests, and other effects of fast math: NaN treated as a number, and denormals flushed in the process.
CHECK = """
import math, sys, torch, smoke
from cbam_fused import CBAM
smoke.main()
x = torch.randn(1, 48, 4, 4)
x[0, 0, 0, 0] = math.nan
assert CBAM(48)(x).isnan().any()
assert (torch.tensor([1e-40]) * torch.tensor([1.0])).item() != 0, "denormals are taken for zero"
"""


def test_flags_of_the_user_leave_the_kernels_right(tmp_path):
    package = ROOT / "cbam_fused"
    shutil.copytree(package, tmp_path / "cbam_fused", ignore=shutil.ignore_patterns("*.so", "*.json", "__pycache__"))
    flags = "-Ofast -ffast-math -funsafe-math-optimizations -ffinite-math-only"
    result = build(tmp_path, CXXFLAGS=flags, LDFLAGS="-ffast-math")
    assert result.returncode == 0, result.stdout
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tools")])}
    check = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    assert str(tmp_path) in check.stdout


# A fake nvcc that prints its version and GPUs, and compiles nothing.
NVCC = """#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release {cuda}, V{cuda}.0" ;;
--list-gpu-arch) echo compute_80; echo compute_90 ;;
*) echo "cuda.cpp(1): error: no such thing" >&2; exit 2 ;;
esac
"""


@pytest.fixture
def broken_nvcc(tmp_path) -> Path:
    if torch.version.cuda is None:
        pytest.skip("this torch is one without CUDA")
    program = tmp_path / "cuda" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text(NVCC.format(cuda=torch.version.cuda))
    program.chmod(0o755)
    return tmp_path / "cuda"


def test_kernels_that_nvcc_does_not_compile_leave_the_others(tmp_path, broken_nvcc):
    variables = {"CUDA_HOME": str(broken_nvcc), "TORCH_CUDA_ARCH_LIST": "9.0"}
    result = build(tmp_path / "lib", CBAM_FUSED_CUDA="auto", **variables)
    assert result.returncode == 0, result.stdout
    files, info = built(tmp_path / "lib")
    assert files == {"_C"}
    assert info["cuda"] == (
        "not built: cuda.cpp(1): error: no such thing; `CBAM_FUSED_CUDA=1 pip install -v .` shows all of it"
    )
    assert result.stdout.splitlines()[-1] == f"cbam_fused: CUDA kernels {info['cuda']}"
    # The binding goes first: what does not fit this torch shows before any kernel is compiled.
    assert result.stdout.count("FAILED") == 1
    demanded = build(tmp_path / "demanded", CBAM_FUSED_CUDA="1", **variables)
    assert demanded.returncode != 0
    assert "CBAM_FUSED_CUDA=1, but the CUDA kernels do not compile: see above" in demanded.stdout


def test_cuda_kernels_that_are_demanded_and_cannot_be(tmp_path):
    result = build(tmp_path, CBAM_FUSED_CUDA="1", CUDA_HOME="/nowhere")
    assert result.returncode != 0
    assert "CBAM_FUSED_CUDA=1, but " in result.stdout
    result = build(tmp_path, CBAM_FUSED_CUDA="yes")
    assert "CBAM_FUSED_CUDA must be 0, 1 or auto, got 'yes'" in result.stdout


# Mounts folders over others, for itself alone.
ALONE = ["unshare", "--mount", "--map-root-user"]


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], capture_output=True).returncode != 0,
    reason="needs a mount namespace",
)
def test_a_source_tree_that_cannot_be_written(tmp_path):
    """As in a container with the sources in a read-only volume: setuptools must write elsewhere, too."""
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", "*.so", "docs", "bench")
    shutil.copytree(ROOT, tree, ignore=ignored)
    # The kernels themselves take a minute: what is tried is where everything is written.
    code = f"""
import pathlib, sys
sys.path.insert(0, "_build")
import backend, build_kernels
def build(self, folder):
    made = pathlib.Path(folder) / "_C.so"
    made.parent.mkdir(parents=True)
    made.touch()
    return {{"_C": made}}
build_kernels.Kernels.build = build
print(backend.get_requires_for_build_wheel())
print(backend.build_wheel({str(tmp_path)!r}))
"""
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1" && exec "$2" -B -c "$3"'
    command = [*ALONE, "sh", "-c", script, "sh", str(tree), sys.executable, code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / result.stdout.splitlines()[-1]).is_file()


def test_a_build_without_ninja(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ninja", None)
    with pytest.raises(RuntimeError, match="building needs ninja: run `pip install ninja` first"):
        build_kernels.Kernels().build(tmp_path)
