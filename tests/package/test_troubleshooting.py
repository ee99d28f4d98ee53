"""Every message of ours in docs/guide/troubleshooting.md is real."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import environment
import nvcc
import pytest
import torch

from cbam_fused import CBAM, export_state_dict
from cbam_fused.ops import registry
from cbam_fused.variants import state_dict

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text()
QUOTED = [line for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]


def quoted(start: str) -> str:
    """The message of the page with this start."""
    (message,) = [line for line in QUOTED if line.startswith(start)]
    return message


def build(change: str = "", **variables) -> str:
    """The error of a build that fails before compiling."""
    code = f"""
import sys
sys.path.insert(0, "_build")
import environment
{change}
sys.argv = ["setup.py", "--quiet", "build_ext"]
exec(open("setup.py").read())
"""
    command, env = [sys.executable, "-c", code], os.environ | variables
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode != 0
    return result.stderr


def test_a_build_without_compiler():
    assert quoted("no C++ compiler") in build(CXX="no-such-compiler")


def test_a_build_without_torch():
    assert quoted("building needs torch") in build("environment.find_torch = lambda: None")


def test_a_build_by_another_compiler():
    assert quoted("the kernels need GCC") in build(
        "import compiler; compiler.sys = type('', (), {'platform': 'win32'})"
    )


def test_a_build_site_without_torch(monkeypatch):
    monkeypatch.setenv("CBAM_FUSED_BUILD_SITE", "/nowhere")
    with pytest.raises(FileNotFoundError, match=re.escape(quoted("CBAM_FUSED_BUILD_SITE"))):
        environment.find_torch()


def test_reasons_against_cuda_kernels(monkeypatch):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(nvcc, "nvcc_version", lambda nvcc: "12.8")
    for arguments in ((None, "nvcc"), ("13.0", None), ("13.0", "nvcc")):
        assert nvcc.obstacle(*arguments) in QUOTED
    monkeypatch.setattr(nvcc, "nvcc_version", lambda nvcc: "")
    assert nvcc.obstacle("13.0", "/usr/local/cuda/bin/nvcc") in QUOTED
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert nvcc.obstacle("13.0", None) in QUOTED


def test_an_architecture_that_nvcc_does_not_know(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere")
    with pytest.raises(nvcc.Unavailable, match=re.escape(quoted("TORCH_CUDA_ARCH_LIST"))):
        nvcc.architectures(["8.0", "9.0", "12.0"], [])


def test_gpus_that_nvcc_does_not_know(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    with pytest.raises(nvcc.Unavailable, match=re.escape(quoted("nvcc must support"))):
        nvcc.architectures(["7.5", "8.0", "9.0"], ["6.1"])


def test_a_package_without_binary(monkeypatch):
    monkeypatch.setattr(registry, "_find", lambda stem: None)
    assert registry._load("_C") in QUOTED


def test_triton_without_a_c_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("CC", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    assert registry._find_triton() == quoted("Triton needs a C compiler")


@pytest.mark.parametrize(
    "backend,start",
    [
        ("cuda", "CBAM_FUSED_BACKEND=cuda"),
        ("triton", "CBAM_FUSED_BACKEND=triton"),
        ("gpu", "CBAM_FUSED_BACKEND must"),
    ],
)
def test_a_backend_that_cannot_be(backend, start, monkeypatch):
    monkeypatch.setattr(registry, "cuda_missing", "")
    monkeypatch.setattr("cbam_fused.routing.wanted", backend)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=re.escape(quoted(start))):
        CBAM(8)(torch.zeros(1, 8, 2, 2))


@pytest.mark.parametrize(
    "start,use",
    [
        ("width", lambda: CBAM(8, variant="official")),
        ("w1", lambda: CBAM(64).half()(torch.zeros(1, 64, 2, 2))),
        ("x must have", lambda: CBAM(64, variant="official")(torch.zeros(1, 64, 1, 1))),
        ("variant=", lambda: CBAM(64).load_state_dict(export_state_dict(CBAM(64, variant="official"), "official"))),
    ],
)
def test_wrong_use(start, use):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=re.escape(quoted(start))):
        use()


def test_a_checkpoint_of_unknown_order():
    state = export_state_dict(CBAM(64, variant="shared_mlp"), "shared_mlp")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state_dict._warn.cache_clear()  # it warns once
        CBAM(64).load_state_dict(state)
    assert any(str(w.message).startswith(quoted("checkpoint:")) for w in caught)
