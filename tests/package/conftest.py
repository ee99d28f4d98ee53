"""Fixtures of the tests of the package."""

import pytest


@pytest.fixture
def small_gpu(monkeypatch):
    """A fake GPU, and sizes that a CPU measures in seconds."""
    import torch
    from fake_gpu import FakeGpu

    from bench import gpu, networks, timing
    from cbam_fused import CBAM, reference

    for module, name, value in [
        *((gpu, name, value) for name, value in {"BATCH": 4, "SIDE": 8, "ROUNDS": 2}.items()),
        *((timing, name, value) for name, value in {"LEAST": 1e-4, "REPEATS": 1, "STEPS": 1}.items()),
        (timing, "GRAPH_CALLS", 4),
    ]:
        monkeypatch.setattr(module, name, value)

    def build(name, variant, example):
        cbam = [] if variant == "none" else [{"fused": CBAM}.get(variant, reference.CBAM)(16)]
        head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, networks.CLASSES)]
        return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), *cbam, *head).to(example.device)

    monkeypatch.setattr(networks, "build", build)  # which tests/package/test_bench.py tries
    gpu.drawn.cache_clear()
    with FakeGpu() as fake:
        yield fake
    gpu.drawn.cache_clear()
