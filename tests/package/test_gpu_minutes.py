"""The programs for a few minutes on a GPU, on a fake GPU: what they measure, and what they refuse."""

import json
import sys

import pytest
import torch

from bench import gate, gpu
from cbam_fused import selftest
from cbam_fused.ops import registry

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", selftest.KINDS)
def test_the_selftest_on_the_stand_in(small_gpu, kind, monkeypatch):
    monkeypatch.setattr(selftest, "KINDS", (kind,))
    monkeypatch.setattr(selftest, "DTYPES", (torch.float32,))
    served = [(device, name) for device in selftest.devices() for name in selftest.backends(device)]
    assert served == [("cuda", "cuda"), ("cuda", "triton"), ("cpu", "cpu")]
    for c in selftest.check(served, [(16, 5, 4)], []):
        assert c["passed"], c
        assert ("same bits from a CUDA graph" in c["found"]) == (c["backend"] != "cpu")


def test_what_is_wrong_is_not_timed_and_the_rest_is(small_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gate, "disagreement", lambda *_: "dx is off")
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(out), "--maps", "16x8x8", "--parts", "cuda", "copy"])
    assert gpu.main() == gpu.main() == 1
    data = json.loads(out.read_text())
    assert [[*row["microseconds"]] for row in data["operators"]] == [["copy"]] * 3
    assert [*data["failed"].values()] == ["RuntimeError: not timed, the results are wrong: dx is off"] * 3
    assert "FAILED cuda 4x16x8x8 float32 nchw: RuntimeError" in capsys.readouterr().out


def test_a_gpu_that_is_lost_ends_the_program(small_gpu, tmp_path, monkeypatch):
    def lost(*_):
        raise RuntimeError("an illegal memory access was encountered")

    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "operator", lost)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(out), "--maps", "16x8x8", "--parts", "cuda"])
    for count in (1, 2):  # it resumes after the case that lost the GPU
        with pytest.raises(RuntimeError, match="illegal memory access"):
            gpu.main()
        assert len(json.loads(out.read_text())["failed"]) == count


@pytest.mark.parametrize(
    ("folder", "cuda", "triton", "message"),
    [
        ("missing", "", "", "missing must be a folder that exists"),
        ("", "cbam_fused/_C_cuda was not built", "", "CUDA kernels: cbam_fused/_C_cuda was not built"),
        ("", "", "triton is not installed", "triton is not installed"),
    ],
)
def test_what_the_gpu_benchmark_lacks_it_says_at_once(folder, cuda, triton, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / folder / "h100.json")])
    monkeypatch.setattr(registry, "cuda_unserved", lambda device: cuda)
    monkeypatch.setattr(registry, "triton_missing", triton)
    with pytest.raises(SystemExit):
        gpu.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--minutes", "0"), ("--minutes", "x"), ("--maps", "3x4"), ("--maps", "0x1x1")]
)
def test_options_that_mean_nothing_are_refused(option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / "file"), option, value])
    with pytest.raises(SystemExit):
        gpu.main()
    assert f"argument {option}" in capsys.readouterr().err
