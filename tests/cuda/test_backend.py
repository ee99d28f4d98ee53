"""When the CUDA kernels are chosen, and what their library needs: all that can be seen without a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cbam_fused import functional, reference
from cbam_fused.ops import registry
from cbam_fused.variants.config import Switches

CUDA = SimpleNamespace(device=torch.device("cuda"))
built = pytest.mark.skipif(registry._find("_C_cuda") is None, reason="cbam_fused/_C_cuda was not built")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 9.0, and kernels for it."""
    monkeypatch.setattr("cbam_fused.functional.wanted", "auto")
    monkeypatch.setattr(registry, "cuda_missing", "")
    monkeypatch.setattr(registry, "cuda_architectures", ("8.0", "9.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return properties


def test_gpu_tensors_go_to_the_cuda_kernels(gpu, monkeypatch):
    assert functional.backend_for(CUDA) == "cuda"
    monkeypatch.setattr("cbam_fused.functional.wanted", "cuda")
    assert functional.backend_for(CUDA) == "cuda"
    monkeypatch.setattr("cbam_fused.functional.wanted", "triton")
    assert functional.backend_for(CUDA) == "triton"


def test_gpus_that_they_were_not_built_for_go_to_triton(gpu, monkeypatch):
    gpu.major, gpu.minor = 12, 0
    assert functional.backend_for(CUDA) == "triton"
    monkeypatch.setattr("cbam_fused.functional.wanted", "cuda")
    reason = r"CBAM_FUSED_BACKEND=cuda, but x is on cuda; built for 8\.0, 9\.0, not for a GPU of 12\.0"
    with pytest.raises(RuntimeError, match=reason):
        functional.backend_for(CUDA)


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "meta"])
def test_cuda_kernels_that_are_not_there(device, monkeypatch):
    monkeypatch.setattr(registry, "cuda_missing", "cbam_fused/_C_cuda was not built")
    monkeypatch.setattr("cbam_fused.functional.wanted", "cuda")
    with pytest.raises(RuntimeError, match=f"CBAM_FUSED_BACKEND=cuda, but x is on {device}; .*_C_cuda was not built"):
        functional.backend_for(SimpleNamespace(device=torch.device(device)))


def test_other_pools_are_left_to_the_reference():
    x = torch.zeros(1, 2, 3, 3)
    other = Switches(pools=("avg", "lp"))
    assert functional.unserved("cuda", x, None, other, "channel") == "pools=('avg', 'lp')"
    for served in (reference.TUTORIAL, reference.TIES["even"], Switches(pools=("avg",), act="silu")):
        assert functional.unserved("cuda", x, None, served, "channel", "spatial") == ""


@built
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_library_carries_the_runtime_and_needs_no_driver():
    command = ["readelf", "--wide", "--dynamic", str(registry._find("_C_cuda"))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    needed = [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= set(needed)
    assert not [name for name in needed if name.startswith(("libpython", "libtorch_python", "libcuda", "libc10"))]


@built
def test_library_tells_nothing_of_where_it_was_built():
    assert str(Path(__file__).parents[2]).encode() not in registry._find("_C_cuda").read_bytes()


ALONE = """
import torch
from unittest import mock
from pathlib import Path
glob = Path.glob
without = lambda folder, pattern: [] if pattern.startswith("_C.") else glob(folder, pattern)
with mock.patch.object(Path, "glob", without):
    from cbam_fused.ops import registry
assert registry.cpu_missing and not registry.cuda_missing, (registry.cpu_missing, registry.cuda_missing)
has = torch._C._dispatch_has_kernel_for_dispatch_key
for name in registry.Operators._fields:
    assert has(f"{registry.NAMESPACE}::{name}", "CUDA") and not has(f"{registry.NAMESPACE}::{name}", "CPU"), name
with torch._subclasses.FakeTensorMode():
    x, w1, w2, ws = (torch.empty(s, device="cuda") for s in ((2, 16, 9, 8), (4, 16), (16, 4), (1, 2, 7, 7)))
    y, saved, index = registry.operators["cuda"].forward(x, w1, None, w2, None, ws, None, None, False, 0)
assert y.shape == x.shape and y.device.type == "cuda" and saved.shape == (2, 272) and index.shape == (2, 88)
assert not torch.cuda.is_initialized()
"""


@built
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_library_does_not_need_that_of_the_cpu(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "CBAM_FUSED_BACKEND"}
    env["PYTHONPATH"] = str(Path(functional.__file__).parent.parent)
    result = subprocess.run([sys.executable, "-c", ALONE], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
