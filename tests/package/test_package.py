"""The installed package: its binaries, the sdist, an installation with pip."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from interpreter import python

from cbam_fused.ops import registry

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cbam_fused"


def test_info_without_binary_says_why(tmp_path):
    copy_sources(tmp_path)
    code = """
import importlib.metadata, runpy, sys, torch
importlib.metadata.distributions = lambda **kwargs: []
sys.argv = ["cbam_fused", "info"]
runpy.run_module("cbam_fused", run_name="__main__")
"""
    out = python("-c", code, cwd=tmp_path)
    assert "not available: cbam_fused/_C was not built" in out
    assert out.splitlines()[-2].split() == ["cpu", "tensors:", "reference"]


def test_source_folder_without_binary_finds_the_installed_one(tmp_path):
    """As after `pip install .`, in the root of the repository, beside files of an older build."""
    source, site = tmp_path / "source", tmp_path / "site"
    copy_sources(source)
    for folder in (source / "cbam_fused.egg-info", site / "cbam_fused-0.1.0.dist-info"):
        folder.mkdir(parents=True)
        name = "PKG-INFO" if folder.suffix == ".egg-info" else "METADATA"
        (folder / name).write_text("Metadata-Version: 2.1\nName: cbam_fused\nVersion: 0.0.1\n")
    (site / "cbam_fused").mkdir()
    shutil.copy(registry._find("_C"), site / "cbam_fused")
    code = "from cbam_fused.ops import registry as k; print(k.__file__, k._find('_C'), k.cpu_missing or 'loaded')"
    module, binary, loaded = python("-c", code, cwd=source, PYTHONPATH=str(site)).split()
    assert Path(module).parents[1] == source / "cbam_fused"
    assert Path(binary).parent == site / "cbam_fused"
    assert loaded == "loaded"


def test_binaries_come_from_one_folder(tmp_path):
    """As in a venv with --system-site-packages, over an environment that has a package with CUDA kernels."""
    copy_sources(tmp_path)
    other = tmp_path / "site"
    (other / "cbam_fused-0.0.1.dist-info").mkdir(parents=True)
    (other / "cbam_fused-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: cbam_fused\n")
    (other / "cbam_fused").mkdir()
    shutil.copy(registry._find("_C"), tmp_path / "cbam_fused")
    for name in ("_C.abi3.so", "_C_cuda.abi3.so"):
        (other / "cbam_fused" / name).write_text("not a library")
    code = (
        "from cbam_fused.ops import registry as k; print(k._find('_C').parents[1], k._find('_C_cuda'), k.cuda_missing)"
    )
    out = python("-c", code, cwd=tmp_path, PYTHONPATH=str(other)).split(maxsplit=2)
    assert out[:2] == [str(tmp_path), "None"]
    assert out[2] == "cbam_fused/_C_cuda was not built\n"


def copy_sources(folder):
    shutil.copytree(PACKAGE, folder / "cbam_fused", ignore=shutil.ignore_patterns("*.so", "*.json", "__pycache__"))


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_binary_needs_neither_python_nor_cuda_and_of_torch_the_stable_abi():
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", str(registry._find("_C"))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    needed = [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]
    undefined = [line.split()[7] for line in lines if " UND " in line and len(line.split()) > 7]
    assert "libtorch_cpu.so" in needed
    assert not [
        name for name in needed if name.startswith(("libpython", "libtorch_python", "libcuda", "libtorch_cuda"))
    ]
    # Symbols without a version such as @GLIBC_2.14 are torch's, except those of the toolchain in every library.
    of_torch = [name for name in undefined if "@" not in name and not re.match("_ITM_|__gmon_start__|__cxa_", name)]
    assert of_torch and not [name for name in of_torch if not name.startswith(("aoti_torch_", "torch_"))]


def test_binary_tells_nothing_of_where_it_was_built():
    assert str(ROOT).encode() not in registry._find("_C").read_bytes()


def test_sdist_holds_kernels_and_backend(tmp_path):
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "garbage", "build", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, tree, ignore=ignored)
    code = "import sys; sys.path.insert(0, '_build'); import backend; print(backend.build_sdist(sys.argv[1]))"
    name = python("-c", code, str(tmp_path), cwd=tree).splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        held = {Path(*Path(member).parts[1:]) for member in archive.getnames()}
    wanted = [path for folder in ("csrc", "_build", "cbam_fused") for path in (tree / folder).rglob("*.*")]
    wanted += [tree / "setup.py", tree / "pyproject.toml", tree / "LICENSE"]
    missing = {path.relative_to(tree) for path in wanted if path.suffix not in (".json", ".pyc")} - held
    assert not {path for path in missing if "__pycache__" not in path.parts}


def test_a_second_copy_is_refused(tmp_path):
    """In one process: a second registration of the operators would abort it."""
    shutil.copytree(ROOT / "cbam_fused", tmp_path / "vendor" / "cbam_fused")
    code = "import cbam_fused, vendor.cbam_fused"
    again = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == (
        "ImportError: another copy of cbam_fused has registered the operators of cbam_fused in this process"
    )


@pytest.mark.slow  # a minute, and an index of packages
def test_pip_install_into_a_new_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    new = tmp_path / "venv" / "bin" / "python"
    site = subprocess.check_output([new, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    Path(site.strip(), "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [new, "-m", "pip", "install", "-v", "--no-deps", ROOT]
    log = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert log.returncode == 0, log.stdout
    assert "Collecting torch" not in log.stdout
    assert "cbam_fused: CUDA kernels" in log.stdout
    code = (
        "import cbam_fused; print(cbam_fused.ops.registry._find('_C'), cbam_fused.ops.registry.cpu_missing or 'loaded')"
    )
    out = subprocess.check_output([new, "-c", code], cwd=tmp_path, text=True).split()
    assert out == [str(next(Path(site.strip(), "cbam_fused").glob("_C.*so"))), "loaded"]
