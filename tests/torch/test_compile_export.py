"""Export of CBAM: torch.export, AOTInductor, ONNX, TorchScript; and torch.fx, including feature extraction."""

import io
import operator
import subprocess
import sys

import pytest
import torch
from torch import nn

import cbam_fused
from cbam_fused import CBAM, VARIANTS, ChannelAttention, functional, reference, routing

BATCH = torch.export.Dim("batch")


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), CBAM(16), nn.Conv2d(16, 8, 1), CBAM(8, 4, variant="official")
    )
    network[4].sa.bn.running_mean.fill_(0.1)
    return network.eval()


@pytest.fixture
def x():
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def operators(graph):
    """Names of the operators, without getitem of several results."""
    return {str(node.target) for node in graph.nodes if node.op == "call_function"} - {str(operator.getitem)}


def test_export_with_dynamic_batch(network, x):
    program = torch.export.export(network, (x,), dynamic_shapes=({0: BATCH},))
    assert "cbam_fused.cbam.default" in operators(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()
    for images in (x, x[:1], x.repeat(2, 1, 1, 1)):
        torch.testing.assert_close(loaded(images), network(images))


def test_export_in_plain_operators(network, x):
    """For programs that run without this package."""
    with cbam_fused.use_backend("reference"):
        program = torch.export.export(network, (x,), dynamic_shapes=({0: BATCH},))
    assert {name.partition(".")[0] for name in operators(program.graph)} == {"aten"}
    torch.testing.assert_close(program.module()(x[:2]), network(x[:2]))


LOAD = """
import sys, torch
import cbam_fused  # the package calls its operators
x, expected = torch.load(sys.argv[2])
torch.testing.assert_close(torch._inductor.aoti_load_package(sys.argv[1])(x), expected)
"""


def test_aoti_package_runs_in_a_new_process(network, x, tmp_path):
    package, tensors = str(tmp_path / "network.pt2"), tmp_path / "tensors.pt"
    program = torch.export.export(network, (x,), dynamic_shapes=({0: BATCH},))
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    images = x[:3]
    torch.save((images, network(images).detach()), tensors)
    result = subprocess.run([sys.executable, "-c", LOAD, package, tensors], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_onnx(network, x, tmp_path):
    """One call of torch.onnx.export, with any batch and image size; the operators are those of ONNX."""
    onnx = pytest.importorskip("onnx", reason="pip install '.[export]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
    pytest.importorskip("onnxscript", reason="pip install '.[export]'")
    file = tmp_path / "network.onnx"
    sizes = ({0: "N", 2: "H", 3: "W"},)
    torch.onnx.export(network, (x,), file, input_names=["x"], dynamic_shapes=sizes, dynamo=True, verbose=False)
    model = onnx.load(file)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"} and not model.functions
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for images in (x, torch.randn(1, 3, 12, 17)):
        (got,) = session.run(None, {"x": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), network(images).detach(), rtol=1e-4, atol=1e-5)
    assert routing.backend_for(x) == "cpu"  # again


def test_onnx_of_a_program(network, x, tmp_path):
    """Of an exported program, which has operators of this package."""
    onnx = pytest.importorskip("onnx", reason="pip install '.[export]'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
    pytest.importorskip("onnxscript", reason="pip install '.[export]'")
    file = tmp_path / "network.onnx"
    program = torch.export.export(network, (x,), dynamic_shapes=({0: BATCH},))
    torch.onnx.export(program, (), file, input_names=["x"], dynamo=True, verbose=False)
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}
    (got,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": x[:3].numpy()})
    torch.testing.assert_close(torch.from_numpy(got), network(x[:3]).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:FutureWarning")
def test_torchscript_trace_can_be_saved_and_trained(network, x):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, x), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(x), network(x))
    for module in (loaded, network):
        module(x).square().sum().backward()
    for (name, p), q in zip(loaded.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_fx_traces_a_network(variant, training):
    """A CBAM is one call in the graph."""
    module = CBAM(32, variant=variant)
    network = nn.Sequential(nn.Conv2d(3, 32, 1), module).train(training)
    traced = torch.fx.symbolic_trace(network)
    assert functional.cbam in {node.target for node in traced.graph.nodes}
    x = torch.randn(2, 3, 6, 5)
    assert torch.equal(traced(x), network(x))


def test_fx_feature_extractor():
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    network = torchvision.models.resnet18().eval()
    cbam_fused.insert_cbam(network, where="each_layer")
    x = torch.randn(1, 3, 32, 32)
    features = create_feature_extractor(network, {"layer2": "stage", "fc": "logits"})(x)
    assert torch.equal(features["logits"], network(x)) and features["stage"].shape == (1, 128, 4, 4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize("module", [CBAM(16), ChannelAttention(16), reference.CBAM(16, variant="official")])
def test_torchscript_compiler_is_refused(module):
    with pytest.raises(RuntimeError, match=rf"torch.jit.script cannot compile {type(module).__name__}: use torch"):
        torch.jit.script(nn.Sequential(nn.ReLU(), module))
