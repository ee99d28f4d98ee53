"""What the build is made of: what it imports, and which Pythons a wheel is for."""

import ast
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import setup_script
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

SCRIPTS = [setup_script.ROOT / "setup.py", *(setup_script.ROOT / "_build").glob("*.py")]
NETWORK = {"asyncio", "ftplib", "http", "socket", "ssl", "urllib", "xmlrpc"}


def imported(script: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_build_imports_neither_torch_nor_the_network(script):
    """So it has no need of torch's build helpers, downloads nothing, and does not look for a GPU."""
    assert imported(script) <= {*sys.stdlib_module_names, "environment", "setuptools"} - NETWORK


@pytest.mark.parametrize("free_threaded", [False, True])
def test_a_wheel_is_for_every_python_with_a_lock(free_threaded, monkeypatch):
    """A free-threaded Python has no limited API: its wheel is for this one alone."""
    names = setup_script.run(monkeypatch, free_threaded)
    tag = {} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}}
    assert names["arguments"]["options"] == tag
    assert names["CPU_EXTENSION"].py_limited_api is not free_threaded


def test_max_jobs(monkeypatch):
    """As for every other extension of PyTorch: where memory is short, or others need the cores."""
    monkeypatch.setenv("MAX_JOBS", "3")
    assert setup_script.run(monkeypatch)["JOBS"] == 3
    for no_number in ("auto", "0", "-1", ""):
        monkeypatch.setenv("MAX_JOBS", no_number)
        assert setup_script.run(monkeypatch)["JOBS"] == os.cpu_count()
    monkeypatch.delenv("MAX_JOBS")
    assert setup_script.run(monkeypatch)["JOBS"] == os.cpu_count()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("folder", ["with space", "with,comma"])
@pytest.mark.parametrize("compiler", ["g++", "ccache g++ -m64"])
def test_nvcc_passes_on_what_the_host_compiler_needs(compiler, folder, tmp_path, monkeypatch):
    """Of torch in a folder of any name, and of a compiler behind a launcher, which need not be there."""
    include = tmp_path / folder
    include.mkdir()
    (include / "of_torch.h").touch()
    (tmp_path / "binding.cpp").write_text('#include "of_torch.h"\n')
    build = SimpleNamespace(nvcc=shutil.which("nvcc"), compiler=SimpleNamespace(compiler_cxx=compiler.split()))
    nvcc = setup_script.run(monkeypatch)["BuildKernels"]._nvcc
    nvcc(build, "-c", tmp_path / "binding.cpp", "-o", tmp_path / "binding.o", host=["-fPIC", f"-I{include}"])
    assert (tmp_path / "binding.o").is_file()


@pytest.mark.parametrize("with_cuda", [False, True])
def test_a_build_leaves_no_older_cuda_kernels_behind(with_cuda, tmp_path, monkeypatch):
    """An editable one, which writes beside the sources: once with nvcc, then without."""
    names = setup_script.run(monkeypatch)
    monkeypatch.setattr(build_ext, "run", lambda self: None)
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "cbam_fused"
    package.mkdir()
    for name in ("_C.abi3.so", "_C_cuda.abi3.so"):
        (package / name).touch()
    build = names["BuildKernels"](Distribution({"name": "cbam_fused", "version": "0.1.0"}))
    build.torch, build.compiler_version, build.cuda = SimpleNamespace(version="2.14.1"), "g++", "not built"
    build.inplace = True
    build.extensions = [Extension(name, []) for name in ["cbam_fused._C", "cbam_fused._C_cuda"][: 1 + with_cuda]]
    build.run()
    left = {path.name for path in package.iterdir()}
    assert left == {"_C.abi3.so", "_build_info.json", *["_C_cuda.abi3.so"][:with_cuda]}
