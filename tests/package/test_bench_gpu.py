"""bench/gpu.py on the CPU: what it refuses, and that a row and a training step are what they are called."""

import sys

import pytest
import torch

from bench import gate, gpu, networks
from cbam_fused.ops import registry


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


def counted(calls: gpu.Calls) -> float:
    """Stands for the time of a call in a CUDA graph."""
    for call in calls:
        call()
    return float(len(calls))


def test_a_row_of_the_gpu_benchmark(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    row = gpu.operators((2, 16, 8, 8), "bfloat16", "nhwc", "cpu", counted)
    times = row["microseconds"]
    assert times.pop("copy") == gpu.MOST and row["x_MB"] == 0.0
    assert times == {name: [gpu.MOST] * 2 for name in ("cpu", "eager, forward and both", "compile, forward and both")}


def test_the_gpu_benchmark_times_nothing_that_is_wrong(monkeypatch):
    monkeypatch.setattr(gate, "disagreement", lambda *_: "dx is off")
    with pytest.raises(RuntimeError, match=r"not timed, the results of .* are wrong: dx is off"):
        gpu.operators((2, 16, 8, 8), "float32", "nchw", "cpu", counted)


def test_a_training_step_of_the_gpu_benchmark(monkeypatch):
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    step = gpu.training_step("resnet18", 2, 32, "cpu", ("none", "fused"))
    assert set(step["ms"]) == {"none", "fused"} and list(step["tax %"]) == ["fused"]


def test_the_steps_of_the_gpu_benchmark_train(monkeypatch):
    """Autocast keeps a weight that it has cast: in one region around all steps, each would have the first weights."""
    kept = []

    class Network(torch.nn.Linear):
        def forward(self, images):
            logits = super().forward(images.flatten(1))
            kept.append(logits.detach())
            return logits

    monkeypatch.setattr(networks, "build", lambda *_: Network(3 * 8 * 8, networks.CLASSES))
    gpu.training_step("resnet18", 4, 8, "cpu", ("none",))
    assert not torch.equal(kept[0], kept[-1])
