"""Every row of the table against its source: outputs, gradients, BatchNorm, widths."""

import doc_tables
import generate_variants
import pytest
import torch
from public import PUBLIC, filled, images, run, under_public_names
from torch import nn

from cbam_fused import CBAM, ChannelAttention, SpatialAttention, export_state_dict, reference
from cbam_fused.variants.config import Switches
from cbam_fused.variants.table import VARIANTS

NO_WIDTH = ("luuuyi", 8)  # 8 // 16 hidden units, see test_widths


def reduction_for(channels):
    return 16 if channels >= 16 else 4


def pair(variant, channels, cls=CBAM):
    """A public module and ours, with the weights of its state_dict."""
    reduction = reduction_for(channels)
    public = filled(PUBLIC[variant](channels, reduction))
    ours = cls(channels, reduction, variant=variant).double()
    assert ours.load_state_dict(public.state_dict(), strict=True) == ([], [])
    return public, ours


def test_a_public_module_for_every_row():
    assert set(PUBLIC) == set(VARIANTS)


@pytest.mark.parametrize("cls", [CBAM, reference.CBAM], ids=["fused", "reference"])
@pytest.mark.parametrize("tied", [False, True], ids=["normal", "relu"])
@pytest.mark.parametrize("variant,channels", [(v, c) for v in VARIANTS for c in (8, 24, 40, 64) if (v, c) != NO_WIDTH])
def test_equal_to_public(variant, channels, tied, cls):
    public, ours = pair(variant, channels, cls)
    x = images(channels, tied)
    for training in (False, True):
        y0, dx0, grads0 = run(public.train(training), x)
        y1, dx1, grads1 = run(ours.train(training), x)
        torch.testing.assert_close(y1, y0)
        torch.testing.assert_close(dx1, dx0)
        grads = under_public_names(ours, grads1, variant)
        torch.testing.assert_close({n: grads[n] for n in grads0}, grads0)
        torch.testing.assert_close(export_state_dict(ours, variant), dict(public.state_dict()))


@pytest.mark.parametrize("variant", [v for v, row in VARIANTS.items() if row.switches.spatial])
def test_masks_equal_to_public(variant):
    """The two masks of a variant, with the caller's products, equal its CBAM."""
    public, whole = pair(variant, 24)
    ca = ChannelAttention(24, reduction_for(24), variant=variant).double()
    sa = SpatialAttention(variant=variant).double()
    row, state = VARIANTS[variant], public.state_dict()
    for module, outer, layers in ((ca, row.ca, (row.fc1, row.fc2)), (sa, row.sa, (row.conv, row.norm))):
        names = {
            n: n.removeprefix(f"{outer}.")
            for n in state
            if n.startswith(f"{outer}." if outer else layers[: 1 + bool(layers[1])])
        }
        module.load_state_dict({short: state[n] for n, short in names.items()}, strict=True)
    x = images(24, tied=True)
    y = ca(x) * x
    y = sa(y) * y + (x if row.switches.residual else 0)
    whole.train(), ca.train(), sa.train()
    torch.testing.assert_close(y, whole(x))
    assert torch.equal(ca.fc1.weight, whole.ca.fc1.weight) and torch.equal(sa.conv1.weight, whole.sa.conv1.weight)


def test_the_rebuilt_formula_is_that_of_the_package():
    package = pytest.importorskip("fightingcv_attention.attention.CBAM", reason="fightingcv-attention is not installed")
    rebuilt = filled(PUBLIC["external_attention"](64, 16))
    original = package.CBAMBlock(64).double()
    original.load_state_dict(rebuilt.state_dict(), strict=True)
    x = images(64, tied=True)
    for got, expected in zip(run(rebuilt, x)[:2], run(original, x)[:2], strict=True):
        torch.testing.assert_close(got, expected)


NOTED = {  # sums of CBAM(64) on x below: eval, training; measured on the original implementations
    "official": (1.5332, -8.2704),
    "luuuyi": (0.8993, 0.8993),
    "timm": (0.8993, 12.7521),
}


@pytest.mark.parametrize("variant", NOTED)
def test_initial_function_is_that_of_the_original(variant):
    """The same random numbers give the same function, including the order of the maps."""
    x = torch.randn(2, 64, 14, 14, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    module = CBAM(64, variant=variant)
    got = [module.train(mode)(x).double().sum().item() for mode in (False, True)]
    assert got == pytest.approx(NOTED[variant], abs=2e-3)


def test_parameter_counts():
    counts = {"official": 680, "luuuyi": 610, "bubbliiiing": 1122, "timm": 612, "timm_light": 563, "ultralytics": 4258}
    counts |= {"pytorchcv": 680, "external_attention": 5315}
    assert counts == {v: sum(p.numel() for p in CBAM(64, variant=v).parameters()) for v in counts}
    assert sum(p.numel() for p in CBAM(64, variant="official", spatial=False).parameters()) == 580


WIDTHS = {  # at 8, 24, 40 and 64 channels, with a reduction of 16; None: no hidden unit, an error
    "floor": (None, 1, 2, 4),
    "at_least_1": (1, 1, 2, 4),
    "nearest": (1, 2, 3, 4),
    "sixteenth": (None, 1, 2, 4),
    "single": (8, 24, 40, 64),
    5: (5, 5, 5, 5),
}


@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width):
    for channels, hidden in zip((8, 24, 40, 64), WIDTHS[width], strict=True):
        if hidden is None:
            with pytest.raises(
                ValueError, match=rf"must give at least 1 hidden unit, got channels // reduction = {channels} // 16 = 0"
            ):
                CBAM(channels, width=width)
        else:
            module = CBAM(channels, width=width)
            assert module.ca.fc1.weight.shape == (hidden, channels, 1, 1)
            assert (module.ca.fc2 is None) == (width == "single")


def test_nearest_is_the_width_of_timm():
    for channels in (8, 24, 40, 64, 72, 136, 200, 1000):
        for reduction in (4, 8, 16):
            expected = PUBLIC["timm"](channels, reduction).channel.fc1.out_channels
            assert Switches(width="nearest").hidden(channels, reduction) == expected


@pytest.mark.parametrize("variant", ["peachypie98", "timm", "tutorial"])
def test_residual_and_relu_epilogue(variant):
    module = filled(CBAM(8, 2, variant=variant)).eval()
    x, residual = images(8, tied=False), images(8, tied=True)
    torch.testing.assert_close(module(x, residual=residual, relu=True), (module(x) + residual).relu())


def test_factory_arguments_by_position():
    module = CBAM(64, 8, 3)
    assert module.ca.fc1.out_channels == 8 and module.sa.conv1.kernel_size == (3, 3)
    assert CBAM(64, variant="bubbliiiing").ca.fc1.out_channels == 8
    assert CBAM(64, variant="external_attention").sa.conv1.kernel_size == (49, 49)


def test_compiles():
    """Also BatchNorm and the reference route in a full graph."""
    torch.manual_seed(0)
    for variant in ("official", "timm_light"):
        module = CBAM(16, variant=variant).eval()
        x = torch.randn(2, 16, 5, 6)
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))


def test_sub_modules_are_fused_ones():
    module = CBAM(16, variant="official")
    assert type(module.ca) is ChannelAttention and type(module.sa) is SpatialAttention
    assert isinstance(module.sa.bn, nn.BatchNorm2d) and module.sa.bn.momentum == 0.01


def test_the_documentation_is_up_to_date():
    assert doc_tables.current("guide/variants.md") == generate_variants.tables(), "run tools/docs/generate_variants.py"
