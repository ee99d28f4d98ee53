"""The GPU architectures of a build, and the reason for a build without CUDA kernels."""

import os
import re

import nvcc as cuda
import pytest

from cbam_fused.ops import registry


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
    """A generation has one PTX, that of its oldest member."""
    assert cuda.code_options(["8.0"]) == ["-gencode=arch=compute_80,code=[sm_80]"]
    assert cuda.code_options(["12.0+PTX", "8.6", "7.5", "8.9", "9.0"]) == [
        "-gencode=arch=compute_75,code=[sm_75]",
        "-gencode=arch=compute_86,code=[sm_86,sm_89]",
        "-gencode=arch=compute_90,code=[sm_90,sm_120,compute_90]",
    ]


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
