"""The installed package: imports in a new interpreter, dependencies of the binary, decisions of the build."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import environment
import nvcc as cuda
import pytest
import torch

from cbam_fused import info as installed
from cbam_fused.ops import registry

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cbam_fused"


def python(*arguments, cwd, **variables):
    """Output of a new interpreter with only the given variables of ours."""
    ours = ("CBAM_FUSED_BACKEND", "CBAM_FUSED_BUILD_SITE", "ATEN_CPU_CAPABILITY", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in ours} | variables
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def info(cwd, **variables):
    lines = python("-m", "cbam_fused", "info", cwd=cwd, **variables).splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def test_fresh_interpreter_runs_forward_elsewhere(tmp_path):
    code = """
import sys, torch, cbam_fused
y = cbam_fused.CBAM(16)(torch.randn(2, 16, 5, 4))
assert y.shape == (2, 16, 5, 4), y.shape
print(cbam_fused.routing.backend_for(y), torch.cuda.is_initialized())
print([name for name in ("triton", "torch.utils.cpp_extension") if name in sys.modules])
"""
    assert python("-c", code, cwd=tmp_path).split() == ["cpu", "False", "[]"]


def test_info_names_versions_builds_and_backends(tmp_path):
    lines = info(tmp_path)
    assert lines["cbam_fused"] == importlib.metadata.version("cbam_fused")
    assert lines["torch"] == torch.__version__
    assert lines["CPU kernels"].startswith("built for generic")
    assert lines["CUDA kernels"].startswith(("built for ", "not built: ", "not available: "))
    assert lines["cpu tensors"] == "cpu"
    assert lines["CBAM_FUSED_BACKEND"] == "not set"


def test_info_imports_only_what_it_shows(tmp_path):
    """torch's benchmark tools import its build tools, which need setuptools and warn about CUDA."""
    code = """
import runpy, sys
sys.modules["setuptools"] = None
sys.argv = ["cbam_fused", "info"]
try:
    runpy.run_module("cbam_fused", run_name="__main__")
except SystemExit as end:
    assert not end.code
print(sorted({"torch.utils.benchmark", "torch.utils.cpp_extension", "cbam_fused.selftest"} & set(sys.modules)))
"""
    assert python("-c", code, cwd=tmp_path).splitlines()[-1] == "[]"


def test_info_names_both_versions_of_torch_where_kernels_are_missing(monkeypatch):
    monkeypatch.setattr(registry, "cuda_missing", "cbam_fused/_C_cuda was not built")
    built = {"cuda": "not built: the torch of the build is one without CUDA", "torch": "2.10.0+cpu"}
    said = installed._cuda_kernels(built)
    assert said == f"{built['cuda']} (built with torch 2.10.0+cpu, not {torch.__version__})"
    assert installed._cuda_kernels(built | {"torch": torch.__version__}) == built["cuda"]


def test_info_says_which_backend_a_variable_chose(tmp_path):
    lines = info(tmp_path, CBAM_FUSED_BACKEND="reference")
    assert (lines["CBAM_FUSED_BACKEND"], lines["cpu tensors"]) == ("reference", "reference")
    assert "got 'nonsense'" in info(tmp_path, CBAM_FUSED_BACKEND="nonsense")["cpu tensors"]


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_info_reports_the_instruction_set_that_torch_uses_too(tmp_path, capability):
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    torchs = python("-c", code, cwd=tmp_path, ATEN_CPU_CAPABILITY=capability).strip()
    if torchs not in ("DEFAULT", "AVX2", "AVX512"):
        pytest.skip(f"this processor's instruction set, {torchs}, has no kernels of its own")
    ours = info(tmp_path, ATEN_CPU_CAPABILITY=capability)["instruction set"]
    assert ours == torchs.lower().replace("default", "generic")


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


def fake_torch(site, version, cuda=None):
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text("raise ImportError('a build must not import torch')")
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    return site


def test_build_uses_the_torch_of_the_environment(monkeypatch):
    monkeypatch.delenv("CBAM_FUSED_BUILD_SITE", raising=False)
    found = environment.find_torch()
    assert (found.folder, found.version) == (Path(torch.__file__).parent, torch.__version__)
    assert found.cuda == torch.version.cuda


def test_build_uses_the_torch_that_a_variable_names(tmp_path, monkeypatch):
    monkeypatch.setenv("CBAM_FUSED_BUILD_SITE", str(fake_torch(tmp_path, "2.10.0.dev20260101+cu130", "13.0")))
    assert environment.find_torch() == environment.Torch(tmp_path / "torch", "2.10.0.dev20260101+cu130", "13.0")


def test_build_finds_a_torch_that_is_only_on_pythonpath(tmp_path):
    """pip sets another PYTHONPATH for builds."""
    site = fake_torch(tmp_path, "2.16.0")
    # Hides the torch of this environment.
    build = """
import sys; sys.path.insert(0, sys.argv[1])
import importlib.util, environment
importlib.util.find_spec = environment._spec_in_target = lambda *name: None
print(environment.find_torch())
"""
    pip = "import os, subprocess, sys; del os.environ['PYTHONPATH']; subprocess.run([sys.executable, *sys.argv[1:]])"
    out = python("-c", pip, "-c", build, str(ROOT / "_build"), cwd=tmp_path, PYTHONPATH=str(site))
    assert out.strip() == str(environment.Torch(site / "torch", "2.16.0", None))


def test_build_names_the_variable_when_its_torch_is_too_old(tmp_path, monkeypatch):
    monkeypatch.setenv("CBAM_FUSED_BUILD_SITE", str(fake_torch(tmp_path, "2.9.1")))
    with pytest.raises(FileNotFoundError, match=r"CBAM_FUSED_BUILD_SITE must be a folder with torch>=2\.10"):
        environment.find_torch()


def test_build_requires_torch_only_where_none_will_do(tmp_path):
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import backend
backend.environment._spec_in_target = backend.environment._spec_on_path_of_pip = lambda: None
print([r for r in backend.get_requires_for_build_wheel() if r.startswith("torch")])
"""
    old, new = fake_torch(tmp_path / "old", "2.9.1"), fake_torch(tmp_path / "new", "2.16.0")
    for site, wanted in ((old, "['torch>=2.10']"), (new, "[]")):
        out = python("-c", code, str(ROOT / "_build"), cwd=ROOT, PYTHONPATH=str(site))
        assert out.splitlines()[-1] == wanted


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "expected"),
    [
        (None, "13.0", "is one without CUDA"),
        ("13.0", None, "CUDA_HOME="),
        ("13.0", "12.8", "nvcc is of CUDA 12.8, but torch of CUDA 13.0"),
        ("13.0", "13.2", ""),
    ],
)
def test_cuda_kernels_are_left_out_for_a_reason(tmp_path, monkeypatch, torch_cuda, nvcc, expected):
    if nvcc:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "nvcc").write_text(f"#!/bin/sh\necho Cuda compilation tools, release {nvcc}, V{nvcc}.88\n")
        (tmp_path / "bin" / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    reason = cuda.obstacle(torch_cuda, cuda.find_nvcc())
    assert reason.startswith(expected) or expected in reason
    assert bool(reason) == bool(expected)


KNOWN = ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0", "12.1"]


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        ("", KNOWN, "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"),
        ("all", KNOWN, "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"),
        ("", KNOWN[:6], "7.5 8.0 8.6 8.9 9.0+PTX"),
        ("8.0;9.0+PTX", KNOWN, "8.0 9.0+PTX"),
        ("9.0a 9.0+PTX  8.6", KNOWN, "9.0+PTX 8.6"),
    ],
)
def test_architectures(wanted, known, expected, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert cuda.architectures(known, []) == expected.split()


@pytest.mark.parametrize(
    ("present", "known", "expected"),
    [
        (["9.0"], KNOWN, "9.0"),
        (["7.5", "8.6"], KNOWN, "7.5 8.6"),
        (["6.1", "8.9"], KNOWN, "8.9"),
        (["10.3"], KNOWN, "10.0+PTX"),
        (["13.0"], KNOWN, "12.1+PTX"),
        (["12.0", "12.1"], KNOWN[:-1], "12.0+PTX"),
    ],
)
def test_architectures_of_the_gpus_that_are_there(present, known, expected, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo {capability}\n" for capability in [*present, *present]))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert cuda.present_architectures() == present
    assert cuda.architectures(known, cuda.present_architectures()) == expected.split()


def test_a_machine_without_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda.present_architectures() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert cuda.present_architectures() == []


@pytest.mark.parametrize("entry", ["Ampere", "7.0", "90", "9.0+ptx", "8.0,9.0"])
def test_architectures_that_nvcc_does_not_know(entry, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0;{entry}")
    with pytest.raises(cuda.Unavailable, match=rf"TORCH_CUDA_ARCH_LIST must .* 12\.1\), .* got '{re.escape(entry)}'"):
        cuda.architectures(KNOWN, [])


def test_options_of_nvcc():
    machine_code = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_120,code=sm_120"]
    options = cuda.code_options(["8.0", "12.0+PTX"])
    assert options == [*machine_code, "-gencode=arch=compute_120,code=compute_120"]


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0 9.0", (8, 0), True),
        ("8.0 9.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0 9.0", (10, 0), False),
        ("8.0+PTX", (12, 0), True),
        ("8.6+PTX", (8, 0), False),
        ("8.0 12.0+PTX", (10, 3), False),
        ("8.0 10.0", (7, 5), False),
        ("", (9, 0), False),
    ],
)
def test_which_gpus_a_build_serves(architectures, capability, expected):
    assert registry.runs(tuple(architectures.split()), *capability) == expected


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
