"""The operators in PyTorch's compiler: schemas, fake kernels, full graphs."""

import copy
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from gates import SWITCHES, switched
from torch import library
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint
from truth import LAYOUTS, random_problem

from cbam_fused import CBAM, functional, reference, routing
from cbam_fused.ops import registry
from cbam_fused.tensors import saved_logits
from cbam_fused.variants.config import NO_CHANNEL, Switches


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()


layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def operator_arguments(problem, switches=0):
    """Arguments of each operator, by its name; of one that is about the spatial gate alone only where there is one."""
    given = {n: None if t is None else t.detach() for n, t in problem.inputs.items()}
    x, residual, relu = given["x"], given["residual"], problem.relu
    params = [given[n] for n in ("w1", "w2", "ws", "b1", "b2", "bs")]
    y, saved, index = registry.operators["cpu"].forward(x, *params, residual, relu, switches)
    y = y if relu else None
    result = {
        "forward": (x, *params, residual, relu, switches),
        "backward": (problem.dy, x, y, saved, index, *params, switches),
        "gates_forward": (x, *params, switches),
    }
    s = dg = ds = None
    dy = problem.dy
    if given["ws"] is not None:
        s, of_gates = saved_logits(saved, x).contiguous(), switches | (NO_CHANNEL if given["w1"] is None else 0)
        dg, ds, masked = registry.operators["cpu"].gate_grads(dy, x, y, saved, s, of_gates)
        dy = masked if relu else dy
        result["apply_gates"] = (x, saved, s, residual, relu, of_gates)
        result["gate_grads"] = (problem.dy, x, y, saved, s, of_gates)
    return result | {"backward_from_gate_grads": (dy, s, dg, ds, x, saved, index, *params, switches)}


@layouts
@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (0, 6, 5, 7), (2, 1, 5, 7), (2, 6, 1, 1)], ids=str)
def test_opcheck(shape, dtype, options, layout):
    problem = random_problem(shape, dtype, layout, biases=options, residual=options, relu=options)
    for name, arguments in operator_arguments(problem, switches=int(options)).items():
        library.opcheck(getattr(registry.operators["cpu"], name), arguments)


@pytest.mark.parametrize("absent", [("w1", "w2"), ("ws",)], ids=str)
def test_opcheck_of_one_gate(absent):
    problem = random_problem((2, 6, 5, 7))
    problem.inputs |= dict.fromkeys(absent)
    for name, arguments in operator_arguments(problem).items():
        library.opcheck(getattr(registry.operators["cpu"], name), arguments)


@pytest.mark.parametrize("name", SWITCHES)
def test_opcheck_of_switches(name):
    switches = Switches(**SWITCHES[name])
    draw, _ = switched("both", switches)
    problem = draw((2, 6, 5, 7), biases=True)
    problem.inputs["ws"] = random_problem((2, 6, 5, 7)).inputs["ws"]  # the operators know no mean of the maps
    for operator, arguments in operator_arguments(problem, switches.code).items():
        library.opcheck(getattr(registry.operators["cpu"], operator), arguments)


VIEWS = {
    "sliced": lambda: torch.randn(2, 9, 8, 11)[:, 2:8, :, ::2],
    "sliced channels_last": lambda: torch.randn(2, 9, 8, 11).to(memory_format=torch.channels_last)[:, 2:8],
    "transposed": lambda: torch.randn(2, 6, 8, 11).transpose(2, 3),
    "expanded": lambda: torch.randn(1, 6, 8, 11).expand(2, 6, 8, 11),
}


@pytest.mark.parametrize("view", VIEWS)
def test_opcheck_of_strided_inputs(view):
    x = VIEWS[view]()
    arguments = operator_arguments(random_problem(tuple(x.shape), relu=True))
    library.opcheck(registry.operators["cpu"].forward, (x, *arguments["forward"][1:]))
    library.opcheck(registry.operators["cpu"].backward, (x, x, *arguments["backward"][2:]))


@layouts
def test_fullgraph(layout):
    problem = random_problem((2, 16, 9, 8), torch.float32, layout, biases=True, residual=True, relu=True)
    expected = problem.run(functional.cbam)
    got = problem.run(torch.compile(functional.cbam, fullgraph=True))
    for name in expected:
        assert torch.equal(got[name], expected[name]) and got[name].stride() == expected[name].stride(), name


def test_another_backend_is_compiled_anew():
    torch.compiler.reset()
    graphs, x = [], torch.randn(2, 16, 5, 6)

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph

    module = CBAM(16)
    compiled = torch.compile(module, fullgraph=True, backend=keep)
    for backend in ("auto", "reference", "auto"):
        with routing.use_backend(backend):
            torch.testing.assert_close(compiled(x), module(x))
    assert ["conv2d" in code for code in graphs] == [False, True]


def test_fullgraph_with_batch_norm():
    plain = CBAM(16, variant="official", bias=True)
    compiled = copy.deepcopy(plain)
    compiled.compile(fullgraph=True)
    x = torch.randn(3, 16, 7, 6, requires_grad=True)
    for module in (plain, compiled):
        module(x).square().sum().backward()
    for (name, expected), got in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())
    assert plain.sa.bn.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["switch", "switch and norm", "argument", "argument and norm", "tied", "tied mask"])
def test_fullgraph_with_a_tensor_that_comes_twice(name):
    torch.manual_seed(0)
    module = CBAM(16, 1, norm=name.endswith("norm"), residual=name.startswith("switch"), bias=name.startswith("tied"))
    if name.startswith("tied"):
        module.ca.fc2.weight, module.ca.fc2.bias = module.ca.fc1.weight, module.ca.fc1.bias
    part = module.ca if name == "tied mask" else module
    call = (lambda x: part(x, residual=x)) if name.startswith("argument") else part
    x, results = torch.randn(3, 16, 7, 6, requires_grad=True), []
    for f in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
        y = f(x)
        leaves = [x, *part.parameters()]
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_another_eps_of_batch_norm():
    x = torch.randn(3, 16, 7, 6)
    for eps in (1e-5, 1e-3, 1e-1):
        plain = CBAM(16, norm=True)
        plain.sa.bn.eps = eps
        compiled = copy.deepcopy(plain)
        compiled.compile(backend="aot_eager", fullgraph=True)
        results = []
        for module in (plain, compiled):
            y = module(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled.state_dict(), plain.state_dict())


@pytest.mark.parametrize("options", [{}, {"spatial": False}, {"channel": False, "ties": "even"}], ids=str)
def test_fullgraph_module_in_a_network(options):
    """Convolutions around it, any batch and image size, training and inference."""
    torch.manual_seed(0)
    cbam = CBAM(16, **options)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), cbam, torch.nn.Conv2d(16, 4, 3))
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    for size in ((2, 3, 12, 12), (3, 3, 17, 14)):
        x = torch.randn(size)
        expected, got = network(x), compiled(x)
        torch.testing.assert_close(got, expected)
        grads = [torch.autograd.grad(y.square().sum(), list(network.parameters())) for y in (expected, got)]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), expected.detach())


@pytest.mark.parametrize("variant", ["tutorial", "official"])
def test_checkpointed_in_compiled_code(variant):
    """Running statistics are updated once, as in a plain module."""
    module = CBAM(16, variant=variant)
    plain = copy.deepcopy(module)
    compiled = torch.compile(partial(checkpoint, module, use_reentrant=False), backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 16, 7, 6, requires_grad=True)
    for f, m in ((compiled, module), (plain, plain)):
        f(x).square().sum().backward()
        if variant == "official":
            assert m.sa.bn.num_batches_tracked == 1
    for (name, p), q in zip(module.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def count_graphs(modules, inputs, **options):
    """The number of torch.compile's graphs for the modules, each called with its inputs in turn."""
    counter = CompileCounter()
    torch.compiler.reset()
    for module in modules:
        module.compile(backend=counter, fullgraph=True, **options)
    for round_of_inputs in inputs:
        for module, x in zip(modules, round_of_inputs, strict=True):
            module(x)
    return counter.frame_count


@pytest.mark.parametrize("dynamic,expected", [(True, 4), (None, 8)])
def test_stages_of_a_resnet_recompile_for_shapes_alone(dynamic, expected):
    """A graph for each number of channels; other sizes cost no more than with plain operators."""
    stages = ((64, 28), (128, 14), (256, 7), (512, 4))
    inputs = [[torch.randn(2 + d, C, side + d, side + d) for C, side in stages] for d in (0, 0, 1, 2, 0)]
    counts = {cls: count_graphs([cls(C) for C, _ in stages], inputs, dynamic=dynamic) for cls in (CBAM, reference.CBAM)}
    assert counts == {CBAM: expected, reference.CBAM: expected}


def test_a_whole_network_is_one_graph_for_any_size():
    """The same number as for the plain modules; with torch 2.10 the first size has its own graph."""
    inputs = [[torch.randn(N, 3, side, side)] for N, side in ((2, 16), (3, 24), (5, 20))]
    counts = []
    for cls in (CBAM, reference.CBAM):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), cls(16), torch.nn.Conv2d(16, 32, 3, 2), cls(32))
        counts.append(count_graphs([network], inputs, dynamic=True))
    assert counts in ([1, 1], [2, 2])


def test_the_graph_is_the_operator_alone():
    """Compiled code has no checks and choices, so the wrapper takes no time."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph.forward)

    module = CBAM(16)
    compiled = torch.compile(module, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
    x = torch.randn(2, 16, 5, 5)
    compiled(x).sum().backward()
    with torch.no_grad():
        compiled(x)
    forward, backward, inference = graphs
    operator, getitem = str(registry.operators["cpu"].forward), "<built-in function getitem>"
    assert forward[0] == inference[0] == operator and {*forward[1:], *inference[1:]} == {getitem}
    assert [name for name in backward if "cbam_fused" in name] == [str(registry.operators["cpu"].backward)]


def test_max_autotune():
    module = CBAM(16)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), module)
    x = torch.randn(2, 3, 12, 12)
    compiled = torch.compile(network, mode="max-autotune", fullgraph=True)
    got = compiled(x)
    torch.testing.assert_close(got, network(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), got)
    grads = [torch.autograd.grad(y.square().sum(), list(network.parameters())) for y in (got, network(x))]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
