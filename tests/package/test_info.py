"""python -m cbam_fused info, and the import in a new interpreter."""

import importlib.metadata

import pytest
import torch
from interpreter import python

from cbam_fused import info as installed
from cbam_fused.ops import registry


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
