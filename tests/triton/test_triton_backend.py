"""When the Triton kernels are chosen, how PyTorch sees them, and a network trained on them."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import library, nn
from torch._subclasses import FakeTensorMode
from truth import LAYOUTS, random_problem

from cbam_fused import CBAM, functional, routing
from cbam_fused.ops import registry

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def on(device):
    return SimpleNamespace(device=torch.device(device))


def test_both_gpu_backends_say_the_same_twice():
    """Where Python and C++ each have a text of their own: the operators' schemas."""
    for name in registry.Operators._fields:
        schemas = [str(getattr(registry.operators[backend], name)._schema) for backend in ("cpu", "triton")]
        assert schemas[0] == schemas[1].replace("::triton_", "::")


@pytest.fixture
def no_cuda_kernels(monkeypatch):
    monkeypatch.setattr(registry, "cuda_missing", "cbam_fused/_C_cuda was not built")


@pytest.mark.usefixtures("no_cuda_kernels")
@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_gpu_tensors_go_to_triton(device, monkeypatch):
    monkeypatch.setattr("cbam_fused.routing.wanted", "auto")
    assert routing.backend_for(on(device)) == "triton"
    monkeypatch.setattr("cbam_fused.routing.wanted", "triton")
    assert routing.backend_for(on(device)) == "triton"
    monkeypatch.setattr("cbam_fused.routing.wanted", "reference")
    assert routing.backend_for(on(device)) == "reference"
    monkeypatch.setattr("cbam_fused.routing.wanted", "cpu")
    with pytest.raises(RuntimeError, match=f"CBAM_FUSED_BACKEND=cpu, but x is on {device}"):
        routing.backend_for(on(device))


@pytest.mark.usefixtures("no_cuda_kernels")
def test_gpu_tensors_without_triton(monkeypatch):
    monkeypatch.setattr("cbam_fused.routing.wanted", "auto")
    monkeypatch.setattr(registry, "triton_missing", "triton is not installed")
    assert routing.backend_for(on("cuda")) == "reference"
    monkeypatch.setattr("cbam_fused.routing.wanted", "triton")
    with pytest.raises(RuntimeError, match="CBAM_FUSED_BACKEND=triton, but x is on cuda; triton is not installed"):
        routing.backend_for(on("cuda"))


def test_cpu_tensors_go_to_triton_only_on_demand(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("cbam_fused.routing.wanted", "auto")
    assert routing.backend_for(on("cpu")) == ("reference" if registry.cpu_missing else "cpu")
    monkeypatch.setattr("cbam_fused.routing.wanted", "triton")
    assert routing.backend_for(on("cpu")) == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="x is on cpu; Triton serves tensors on a CPU only with TRITON_INTERPRET=1"):
        routing.backend_for(on("cpu"))


def test_transforms_go_to_the_reference(checker):
    x, w1, w2, ws = (random_problem((2, 3, 2, 3)).inputs[n].detach() for n in ("x", "w1", "w2", "ws"))
    got = torch.func.vmap(lambda image: functional.cbam(image[None], w1, w2, ws)[0])(x)
    assert not checker.launches
    torch.testing.assert_close(got, functional.cbam(x, w1, w2, ws))
    assert checker.launches


ON_A_GPU = """
import torch
from types import SimpleNamespace
from cbam_fused import routing, functional
from cbam_fused.ops import registry
registry.cuda_missing = "cbam_fused/_C_cuda was not built"
cuda = torch.device("cuda")
print(routing.backend_for(SimpleNamespace(device=cuda)), routing.why_reference(cuda), sep="; ")
"""
ON_A_CPU = """
import torch
from cbam_fused import CBAM
print(CBAM(4)(torch.ones(1, 4, 2, 2)).shape)
"""


@pytest.mark.parametrize(
    "variables,code,expected",
    [
        (
            {},
            ON_A_GPU,
            "reference; no kernels for cuda tensors; cbam_fused/_C_cuda was not built; "
            "Triton needs a C compiler: gcc or clang on PATH, or one named in CC",
        ),
        ({"CC": "cc"}, ON_A_GPU, "triton; "),
        ({"TRITON_INTERPRET": "1", "CBAM_FUSED_BACKEND": "triton"}, ON_A_CPU, "torch.Size([1, 4, 2, 2])"),
    ],
    ids=["none", "CC", "interpreter"],
)
def test_without_a_c_compiler(variables, code, expected, tmp_path):
    """On a GPU Triton compiles a part of itself, in the interpreter it does not."""
    ours = ("CBAM_FUSED_BACKEND", "TRITON_INTERPRET", "CC")
    env = {name: value for name, value in os.environ.items() if name not in ours} | variables
    env |= {"PATH": str(tmp_path), "PYTHONPATH": str(Path(functional.__file__).parent.parent)}
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith(expected)


IMPORT = """
import sys, torch, cbam_fused
from cbam_fused import routing, functional
from types import SimpleNamespace
assert "triton" not in sys.modules, "importing the package imports Triton"
cbam_fused.ops.registry.cuda_missing = "left out"
assert routing.backend_for(SimpleNamespace(device=torch.device("cuda"))) == "triton"
from cbam_fused.triton import operators
from triton.runtime import driver
assert driver._active is None, "importing the kernels asks for a driver"
assert not torch.cuda.is_initialized()
"""


def test_importing_the_kernels_touches_no_driver(tmp_path):
    ours = ("CBAM_FUSED_BACKEND", "TRITON_INTERPRET")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env["PYTHONPATH"] = str(Path(functional.__file__).parent.parent)
    result = subprocess.run([sys.executable, "-c", IMPORT], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_info_lists_triton(tmp_path):
    env = {n: v for n, v in os.environ.items() if n != "CBAM_FUSED_BACKEND"}
    env["PYTHONPATH"] = str(Path(functional.__file__).parent.parent)
    command = [sys.executable, "-m", "cbam_fused", "info"]
    out = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    lines = {name: value.strip() for name, value in (line.split(":", 1) for line in out.splitlines())}
    assert lines["Triton kernels"] == f"triton {importlib.metadata.version('triton')}"
    assert lines["cuda tensors"] in ("cuda", "triton")


WITHOUT_BINARY = """
import importlib.metadata, torch
importlib.metadata.distributions = lambda **kwargs: []
import cbam_fused
from cbam_fused.ops import registry
assert registry.cpu_missing
torch.manual_seed(0)
module, x = cbam_fused.CBAM(8), torch.randn(1, 8, 3, 4, requires_grad=True)
y = module(x)
y.sum().backward()
assert module.backend_for(x).name == "triton" and "Cbam" in type(y.grad_fn).__name__
torch.testing.assert_close(y, cbam_fused.reference.CBAM.forward(module, x))
compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x), y)
"""


def test_without_the_binary(tmp_path):
    """The operators do not need the library of the CPU kernels."""
    source = Path(functional.__file__).parent
    for path in source.rglob("*.py"):
        copy = tmp_path / "cbam_fused" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    env = os.environ | {"TRITON_INTERPRET": "1", "CBAM_FUSED_BACKEND": "triton", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_BINARY]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@layouts
def test_fake_cuda_tensors(layout):
    """What torch.compile and export trace with for a GPU, here without one."""
    with FakeTensorMode():
        x = torch.empty(2, 16, 9, 8, device="cuda", dtype=torch.bfloat16, memory_format=layout)
        w1, w2, ws = (torch.empty(size, device="cuda") for size in ((4, 16), (16, 4), (1, 2, 7, 7)))
        y, saved, index = registry.operators["triton"].forward(x, w1, w2, ws, None, None, None, x, True, 0)
        grads = registry.operators["triton"].backward(y, x, y, saved, index, w1, w2, ws, None, None, None, 0)
    assert y.device == x.device and y.stride() == x.stride() and y.dtype == x.dtype
    assert saved.shape == (2, 3 * 16 + 2 * 4 + 3 * 72) and saved.dtype == torch.float32
    sizes = [None if g is None else tuple(g.shape) for g in grads]
    assert sizes == [x.shape, (4, 16), (16, 4), (1, 2, 7, 7), None, None, None, x.shape]
    assert grads[0].stride() == x.stride()


@layouts
@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (0, 4, 3, 5), (2, 1, 3, 5)], ids=str)
def test_opcheck(shape, layout, checker):
    problem = random_problem(shape, torch.float32, layout, biases=True, residual=True, relu=True)
    inputs = {n: t.detach() for n, t in problem.inputs.items()}
    params = [inputs[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    forward = (inputs["x"], *params, inputs["residual"], True, 0)
    library.opcheck(registry.operators["triton"].forward, forward)
    y, saved, index = registry.operators["triton"].forward(*forward)
    library.opcheck(registry.operators["triton"].backward, (problem.dy, inputs["x"], y, saved, index, *params, 0))


@layouts
def test_fullgraph(layout, checker):
    problem = random_problem((2, 4, 5, 4), torch.float32, layout, biases=True, residual=True, relu=True)
    expected = problem.run(functional.cbam)
    before = len(checker.launches)
    got = problem.run(torch.compile(functional.cbam, fullgraph=True, backend="aot_eager"))
    assert len(checker.launches) == 2 * before
    for name in expected:
        assert torch.equal(got[name], expected[name]) and got[name].stride() == expected[name].stride(), name


def losses(backend, monkeypatch):
    """Three steps of a small network with a residual block that ends in CBAM, as CBAM-ResNet has it."""
    monkeypatch.setattr("cbam_fused.routing.wanted", backend)
    torch.manual_seed(0)
    stem, body, head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
    first, second = CBAM(8, reduction=2), CBAM(8, reduction=4)
    parameters = [p for module in (stem, body, head, first, second) for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.2, momentum=0.9)
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    curve = []
    for _ in range(3):
        x = first(stem(images).relu())
        x = second(body(x), residual=x, relu=True)
        loss = nn.functional.cross_entropy(head(x.mean((2, 3))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_same_loss_curve_as_the_reference(checker, monkeypatch):
    expected = losses("reference", monkeypatch)
    assert not checker.launches
    got = losses("triton", monkeypatch)
    assert checker.launches.count("cbam_fwd_apply") == checker.launches.count("cbam_bwd_input") == 6
    assert expected[0] != expected[1] != expected[2]
    assert got == pytest.approx(expected, rel=1e-5)
