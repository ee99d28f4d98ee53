"""device= and dtype= as in PyTorch's modules, and keywords of other projects."""

import inspect
import warnings

import pytest
import timm
import torch
from torch.nn.utils import skip_init

import cbam_fused
from cbam_fused import VARIANTS, insert_cbam, reference, routing, surgery

CLASSES = {
    "CBAM": (cbam_fused.CBAM, (32,)),
    "ChannelAttention": (cbam_fused.ChannelAttention, (32,)),
    "SpatialAttention": (cbam_fused.SpatialAttention, ()),
    "reference.CBAM": (reference.CBAM, (32,)),
    "reference.ChannelAttention": (reference.ChannelAttention, (32,)),
    "reference.SpatialAttention": (reference.SpatialAttention, ()),
}
EACH = pytest.mark.parametrize("cls,args", CLASSES.values(), ids=CLASSES)


@EACH
@pytest.mark.parametrize("variant", ["tutorial", "official", "timm", "ultralytics", "hyso"])
def test_device_and_dtype(cls, args, variant):
    torch.manual_seed(0)
    plain = cls(*args, variant=variant)
    torch.manual_seed(0)
    same = cls(*args, variant=variant, device=None, dtype=None)
    torch.testing.assert_close(same.state_dict(), plain.state_dict(), rtol=0, atol=0)
    double = cls(*args, variant=variant, device="cpu", dtype=torch.float64)
    on_meta = cls(*args, variant=variant, device=torch.device("meta"), dtype=torch.bfloat16)
    for name, tensor in plain.state_dict().items():
        if tensor.is_floating_point():
            assert double.state_dict()[name].dtype == torch.float64
            assert on_meta.state_dict()[name].dtype == torch.bfloat16
        assert on_meta.state_dict()[name].device.type == "meta"
        assert on_meta.state_dict()[name].shape == double.state_dict()[name].shape == tensor.shape
    x = torch.randn(2, 32, 5, 5, dtype=torch.float64)
    assert double.eval()(x).dtype == torch.float64


@EACH
def test_skip_init(cls, args):
    module = skip_init(cls, *args)
    plain = cls(*args)
    assert {n: t.shape for n, t in module.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    module.load_state_dict(plain.state_dict())
    x = torch.randn(2, 32, 5, 5)
    assert torch.equal(module(x), plain(x))
    assert next(skip_init(cls, *args, device="meta", dtype=torch.float64).parameters()).dtype == torch.float64


@pytest.mark.parametrize("kind", [cbam_fused.CBAM, reference.CBAM])
def test_attention_layer_of_timm(kind):
    """timm passes device= and dtype= to the given class."""
    model = timm.create_model("resnet50", block_args={"attn_layer": kind}, num_classes=3).eval()
    gates = [m for m in model.modules() if type(m) is kind]
    assert len(gates) == 16
    with torch.no_grad():
        y = model(torch.randn(1, 3, 32, 32))
    calls = []
    for module in gates:
        module.register_forward_hook(lambda *_: calls.append(1))
    assert y.shape == (1, 3) and model(torch.randn(1, 3, 32, 32)).shape == (1, 3) and len(calls) == 16
    half = timm.create_model("resnet18", block_args={"attn_layer": kind}, num_classes=3, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


# From the constructors of the projects in docs/guide/variants.md: their keyword, and ours.
FOREIGN = {
    **dict.fromkeys(("reduction_ratio", "ratio", "rotio", "rd_ratio", "reducton", "se_ratio"), "reduction"),
    **dict.fromkeys(("kernel", "spatial_kernel", "spatial_kernel_size", "kernelsize", "kernel_sz"), "kernel_size"),
    **dict.fromkeys(("no_spatial", "use_spatial"), "spatial"),
    **dict.fromkeys(("pool_types", "pool_type"), "pools"),
    **dict.fromkeys(("act_layer", "activation", "act_cfg"), "act"),
    **dict.fromkeys(("mlp_bias", "use_bias"), "bias"),
    **dict.fromkeys(("norm_layer", "use_bn"), "norm"),
    **{
        "gate_layer": "channel_gate",
        "rd_channels": "width",
        "bn_momentum": "norm_momentum",
        "spatal_bias": "spatial_bias",
    },
    **{"shortcut": "residual", "varaint": "variant", "devices": "device", "d_type": "dtype"},
}


@pytest.mark.parametrize("foreign,right", FOREIGN.items())
@pytest.mark.parametrize("cls", [cbam_fused.CBAM, reference.CBAM])
def test_a_wrong_keyword_names_the_nearest_right_one(cls, foreign, right):
    with pytest.raises(TypeError, match=rf"^CBAM has no argument '{foreign}'; the nearest names are {right}\b"):
        cls(64, **{foreign: 8})


def test_wrong_keywords_of_the_masks():
    with pytest.raises(TypeError, match=r"^ChannelAttention has no argument 'ratio'; .* are reduction"):
        cbam_fused.ChannelAttention(64, ratio=8)
    with pytest.raises(TypeError, match=r"^SpatialAttention has no argument 'kernel'; .* are kernel_size"):
        reference.SpatialAttention(kernel=7)
    with pytest.raises(TypeError, match=r"argument: 'channels'"):  # Python's error, which names the keyword
        cbam_fused.CBAM(gate_channels=64)
    with pytest.raises(TypeError, match=r"^CBAM has no argument 'zzzz'; there are channels, reduction, kernel_"):
        cbam_fused.CBAM(64, zzzz=1)


@pytest.mark.parametrize(
    "function,args,foreign,right",
    [
        (insert_cbam, ([],), "layers", "after"),
        (insert_cbam, ([],), "reduction_ratio", "reduction"),
        (insert_cbam, ([],), "ratio", "reduction"),
        (insert_cbam, ([],), "kernel", "kernel_size"),
        (insert_cbam, ([],), "position", "where"),
        (insert_cbam, ([],), "input", "example_input"),
        (insert_cbam, ([],), "example_inputs", "example_input"),
        (insert_cbam, ([],), "module_cls", "factory"),
        (insert_cbam, ([],), "initialization", "init"),
        (surgery.freeze_except, (), "freeze_bn", "bn_eval"),
        (surgery.attention_maps, (), "images", "x"),
        (surgery.attention_maps, (), "input", "x"),
        (cbam_fused.export_state_dict, (), "name", "variant"),
    ],
)
def test_wrong_keywords_of_functions(function, args, foreign, right):
    message = rf"^{function.__name__} has no argument '{foreign}'; the nearest names are {right}\b"
    with pytest.raises(TypeError, match=message):
        function(cbam_fused.CBAM(8), *args, **{foreign: 8})
    assert inspect.signature(function).parameters.keys() >= {"model"}, "the signature is that of the function"


def test_switches_say_the_same():
    for name in VARIANTS:
        with pytest.raises(TypeError, match="the nearest names are reduction"):
            cbam_fused.CBAM(64, variant=name, reduction_ratio=8)


def test_no_warning_and_the_same_kernels():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = cbam_fused.CBAM(32, device="cpu", dtype=torch.float32)
    x = torch.randn(1, 32, 4, 4)
    assert module.backend_for(x).name == routing.backend_for(x)
