"""build.toml and the tree of `make hub`: build.toml equals setup.py, and the package works with kernel-builder's
_ops.py. kernel-builder itself does not run here."""

import importlib.metadata
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import build_kernels
import flags
import pytest

from cbam_fused.ops import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
BUILD = tomllib.loads((ROOT / "build.toml").read_text())


@pytest.fixture
def hub(tmp_path):
    subprocess.run(["make", "-C", ROOT, "hub", f"HUB={tmp_path / 'a hub'}"], check=True, capture_output=True)
    return tmp_path / "a hub"


def test_every_source_is_named_and_exists(hub):
    named = [source for section in (BUILD["torch"], *BUILD["kernel"].values()) for source in section["src"]]
    assert [source for source in named if not (hub / source).is_file()] == []
    folders = ("csrc", "csrc/binding", "csrc/cpu", "csrc/cpu/isa", "csrc/cpu/passes")
    headers = [str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).glob("*.h")]
    assert sorted(named) == sorted(
        ["torch-ext/module.cpp", build_kernels.BINDING, *chain(*map(flags.sources, flags.X86_64)), *headers]
    )


def test_flags_are_those_of_setup_py():
    assert BUILD["torch"]["cxx-flags"] == flags.COMMON
    assert BUILD["kernel"].keys() == flags.X86_64.keys()
    for isa, own in flags.X86_64.items():
        kernel = BUILD["kernel"][isa]
        assert kernel["src"][:2] == flags.sources(isa)
        assert kernel["cxx-flags"] == [*flags.COMMON, *flags.KERNELS, *own, *flags.QUIET_GCC], isa


def test_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    general, torch_floor = BUILD["general"], BUILD["torch"]["stable-abi"]["cpu"]
    assert general["name"] == project["name"].replace("_", "-") and general["license"] == project["license"]
    assert general["version"] == int(importlib.metadata.version("cbam_fused").split(".")[0])
    assert project["dependencies"] == [f"torch>={torch_floor}"]
    major, minor = (int(part) for part in torch_floor.split("."))
    assert [f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}{0:012x}"] == flags.BINDING


# The last two lines are like kernel-builder's; its binary is replaced by ours under another name.
GENERATED = """
import torch
from torch import library
torch.ops.load_library({binary!r})
made = library.Library("_cbam_fused_cpu_abc1234", "DEF")
for name in {names!r}:
    operator = getattr(torch.ops.cbam_fused, name).default
    made.define(str(operator._schema).removeprefix("cbam_fused::"))
    made.impl(name, operator, "CPU" if operator._schema.arguments else "CompositeExplicitAutograd")
ops = torch.ops._cbam_fused_cpu_abc1234
"""
# As in the kernels package: imported from its path, under another name.
LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("another_name", "torch-ext/cbam_fused/__init__.py")
package = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = package
spec.loader.exec_module(package)
torch.manual_seed(0)
module, x = package.CBAM(32), torch.randn(2, 32, 5, 5, requires_grad=True)
module(x).sum().backward()
graph = torch.export.export(module, (x,)).graph
names = {str(node.target).split(".")[0] for node in graph.nodes if "cbam" in str(node.target)}
print(module.backend_for(x).name, x.grad.isfinite().all().item(), *names, "cbam_fused" in sys.modules)
"""


@pytest.mark.skipif(bool(registry.cpu_missing), reason=f"CPU kernels: {registry.cpu_missing}")
def test_the_package_under_another_name_and_namespace(hub):
    package = hub / "torch-ext" / "cbam_fused"
    assert not (package / "_ops.py").exists()
    names = [*registry.Operators._fields, "cpu_capability"]
    (package / "_ops.py").write_text(GENERATED.format(binary=str(registry._find("_C")), names=names))
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CBAM_FUSED_BACKEND")}
    result = subprocess.run([sys.executable, "-c", LOAD], cwd=hub, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["cpu", "True", "_cbam_fused_cpu_abc1234", "False"]
