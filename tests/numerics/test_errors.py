"""Wrong arguments: the error names the argument, its allowed values and the value given."""

import pytest
import torch
from arguments import OK

from cbam_fused import CBAM, functional, routing

WRONG = [
    ("x", torch.zeros(2, 8, 5), ValueError, r"x must be \(N, C, H, W\) .* got \(2, 8, 5\)"),
    ("x", torch.zeros(2, 8, 0, 5), ValueError, r"x must be .* at least 1, got \(2, 8, 0, 5\)"),
    ("x", torch.zeros(2, 0, 5, 5), ValueError, r"x must be .* at least 1, got \(2, 0, 5, 5\)"),
    ("x", torch.zeros(2, 8, 5, 5, dtype=torch.int32), TypeError, r"x must be a tensor of float32.* got torch.int32"),
    ("x", torch.zeros(2, 8, 5, 5, dtype=torch.complex64), TypeError, r"x must be a tensor of .* got torch.complex64"),
    ("x", [1.0], TypeError, r"x must be a tensor of .* got list"),
    (
        "w1",
        torch.zeros(4, 9, 1, 1),
        ValueError,
        r"w1 must be \(R, 8\) or \(R, 8, 1, 1\) .* for the 8 channels of x, got \(4, 9",
    ),
    ("w1", torch.zeros(4, 8, 3, 3), ValueError, r"w1 must be .* got \(4, 8, 3, 3\)"),
    ("w1", torch.zeros(0, 8), ValueError, r"w1 must be \(R, 8\) .* R of at least 1 .* got \(0, 8\)"),
    ("w1", torch.zeros(32), ValueError, r"w1 must be \(R, 8\) .* got \(32,\)"),
    ("w1", None, TypeError, r"w1 must be a tensor .* got NoneType"),
    (
        "w1",
        torch.zeros(4, 8, dtype=torch.float64),
        TypeError,
        r"w1 must be torch.float32 for x of torch.float32, got torch.float64",
    ),
    ("w1", torch.zeros(4, 8, dtype=torch.int64), TypeError, r"w1 must be torch.float32 .* got torch.int64"),
    ("w2", torch.zeros(4, 8), ValueError, r"w2 must be \(8, 4\) or \(8, 4, 1, 1\) .* got \(4, 8\)"),
    ("ws", torch.zeros(1, 2, 6, 6), ValueError, r"ws must be \(1, 2, k, k\) with k odd, got \(1, 2, 6, 6\)"),
    ("ws", torch.zeros(1, 2, 7, 5), ValueError, r"ws must be \(1, 2, k, k\) with k odd, got \(1, 2, 7, 5\)"),
    ("ws", torch.zeros(1, 1, 7, 7), ValueError, r"ws must be \(1, 2, k, k\) with k odd, got \(1, 1, 7, 7\)"),
    ("b1", torch.zeros(8), ValueError, r"b1 must be \(4,\) or None, got \(8,\)"),
    ("b2", torch.zeros(4), ValueError, r"b2 must be \(8,\) or None, got \(4,\)"),
    ("bs", torch.zeros(()), ValueError, r"bs must be \(1,\) or None, got \(\)"),
    ("bs", 0.5, TypeError, r"bs must be a tensor \(1,\) or None, got float"),
    ("residual", torch.zeros(2, 8, 5, 1), ValueError, r"residual must be \(2, 8, 5, 5\), .* got \(2, 8, 5, 1\)"),
    ("residual", torch.zeros(2, 8, 5, 5).half(), TypeError, r"residual must be torch.float32 .* got torch.float16"),
    ("w2", torch.zeros(8, 4, device="meta"), ValueError, r"w2 must be on cpu like x, got meta"),
    ("norm", True, TypeError, r"norm must be a module such as nn.BatchNorm2d\(1\), or None, got bool"),
]


@pytest.mark.parametrize(
    "names,bias,message",
    [
        (("w1", "w2"), "b1", "b1 must be None without w1 and w2"),
        (("w1", "w2"), "b2", "b2 must be None without w1 and w2"),
        (("ws",), "bs", "bs must be None without ws"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_bias_without_its_gate(backend, names, bias, message, monkeypatch):
    monkeypatch.setattr("cbam_fused.routing.wanted", backend)
    absent = dict.fromkeys((*names, "b1", "b2", "bs"))
    with pytest.raises(ValueError, match=message):
        functional.cbam(**OK | absent | {bias: OK[bias]})


@pytest.mark.parametrize("name,value,kind,message", WRONG)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_wrong_argument(backend, name, value, kind, message, monkeypatch):
    monkeypatch.setattr("cbam_fused.routing.wanted", backend)
    with pytest.raises(kind, match=message):
        functional.cbam(**OK | {name: value})


def hooked():
    module = CBAM(8)
    for name in ("ca.fc1", "sa.conv1"):
        module.get_submodule(name).register_forward_hook(lambda *_: None)
    return module


CASES = {case[0] + str(i): case for i, case in enumerate(WRONG) if case[0] in ("x", "residual")}
MODULES = {
    "hyso": lambda: CBAM(8, 2, variant="hyso"),
    "ultralytics": lambda: CBAM(8, variant="ultralytics"),  # single-layer MLP
    "timm_light": lambda: CBAM(8, 2, variant="timm_light"),  # convolution over one map
    "lp": lambda: CBAM(8, 2, variant="official", pools=("avg", "lp")),
    "hooks": hooked,
}


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_wrong_argument_of_a_module_with_other_switches(case, build):
    name, value, kind, message = case
    module = build()
    expected = "reference" if build in (MODULES["lp"], MODULES["hooks"]) else "cpu"
    assert module.eval().backend_for(OK["x"]).name == expected
    module(OK["x"], residual=OK["residual"])
    with pytest.raises(kind, match=message):
        module(**{"x": OK["x"], "residual": OK["residual"], name: value})


@pytest.mark.parametrize("build", [MODULES[name] for name in ("hyso", "ultralytics", "timm_light", "lp")])
@pytest.mark.parametrize("part", ["", "ca", "sa"])
def test_x_and_the_parameters_of_a_module_with_other_switches(part, build):
    module = build().get_submodule(part)
    with pytest.raises(TypeError, match=r"w[1s] must be torch.float64 for x of torch.float64, got torch.float32"):
        module(OK["x"].double())
    if part != "sa":
        with pytest.raises(ValueError, match=r"w1 must be .* for the 6 channels of x, got \(\d, 8, 1, 1\)"):
            module(OK["x"][:, :6])


def test_half_input_takes_its_own_dtype_or_float32():
    half = {n: t.half() if n in ("x", "residual") else t for n, t in OK.items()}
    assert functional.cbam(**half).dtype == torch.float16
    message = r"w1 must be torch.float16 or torch.float32 for x of torch.float16, got torch.bfloat16"
    with pytest.raises(TypeError, match=message):
        functional.cbam(**half | {"w1": OK["w1"].bfloat16()})


def test_backend_choice(monkeypatch):
    x = OK["x"]
    assert routing.backend_for(x) == "cpu"
    monkeypatch.setattr("cbam_fused.routing.wanted", "reference")
    assert routing.backend_for(x) == "reference"
    assert functional.cbam(**OK).grad_fn is None
    monkeypatch.setattr("cbam_fused.routing.wanted", "cdua")
    with pytest.raises(RuntimeError, match="must be auto, cpu, cuda, triton or reference, got 'cdua'"):
        functional.cbam(**OK)
