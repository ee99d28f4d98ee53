"""The torch that the build uses."""

from pathlib import Path

import environment
import pytest
import torch
from interpreter import python

ROOT = Path(__file__).parents[2]


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
