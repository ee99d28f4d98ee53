"""attention_maps: the gates that the network uses; the network does not change."""

import copy
import functools

import pytest
import torch
from backbones import BiasedCBAM, image, same_state, small_resnet, small_swin
from torch import nn

from cbam_fused import CBAM, insert_cbam, reference
from cbam_fused.surgery import attention_maps


@pytest.mark.parametrize("build", [small_resnet, small_swin])
@pytest.mark.parametrize("factory", [CBAM, reference.CBAM, functools.partial(BiasedCBAM, norm=True)])
def test_they_are_the_factors_of_the_output(build, factory):
    model = build()
    inserted = insert_cbam(model, where="each_layer", factory=factory, example_input=image(1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    seen = {}
    for module in inserted.values():
        module.register_forward_hook(lambda m, args, y: seen.update({m: (args[0], y)}))
    maps = attention_maps(model, image())
    assert list(maps) == list(inserted)
    for name, (channel, spatial) in maps.items():
        x, y = seen[inserted[name]]
        assert channel.shape == (*x.shape[:2], 1, 1) and spatial.shape == (x.shape[0], 1, *x.shape[2:])
        y = y if build is small_resnet else y.permute(0, 3, 1, 2)
        torch.testing.assert_close(x * channel * spatial, y)
        assert not channel.requires_grad and channel.std() > 0


def test_in_block():
    model = small_resnet()
    inserted = insert_cbam(model, where="in_block", example_input=image(1))
    assert list(attention_maps(model, image())) == list(inserted)


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_stays_as_it_is(mode):
    model = small_resnet().train(mode)
    insert_cbam(model, where="each_layer", factory=lambda *a: BiasedCBAM(*a, norm=True), example_input=image(1))
    model.layer2.train(not mode)
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    attention_maps(model, image())
    assert same_state(model.state_dict(), state) and [m.training for m in model.modules()] == modes
    assert all(not m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        attention_maps(model, image()[:, :2])
    assert [m.training for m in model.modules()] == modes and all(not m._forward_pre_hooks for m in model.modules())


def test_cbams_that_the_model_was_built_with():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), CBAM(8), nn.Conv2d(8, 8, 1), CBAM(8))
    maps = attention_maps(model, image(1, 8))
    assert list(maps) == ["1", "3"] and maps["1"].channel.shape == (1, 8, 1, 1)
    assert maps["1"].spatial.shape == (1, 1, 8, 8)


def test_a_cbam_that_is_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.cbam = CBAM(3)

        def forward(self, x):
            return self.cbam(residual=x, x=x * 2)

    model = Keyword()
    channel, _ = attention_maps(model, image())["cbam"]
    torch.testing.assert_close(channel, model.cbam.ca(image() * 2))


def test_of_a_compiled_model():
    """Compiled code does not see hooks registered later."""
    model = small_resnet().eval()
    inserted = insert_cbam(model, where="stem_last", example_input=image(1))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(image())
    maps = attention_maps(compiled, image())
    assert list(maps) == [f"_orig_mod.{name}" for name in inserted]
    for name, expected in attention_maps(model, image()).items():
        torch.testing.assert_close(maps[f"_orig_mod.{name}"], expected)


@pytest.mark.parametrize("where", ["each_layer", "in_block"])
@pytest.mark.parametrize(
    "wrapper",
    [lambda m: torch.compile(m, backend="eager"), nn.DataParallel],
    ids=["compiled", "DataParallel"],
)
def test_a_wrapper_around_an_inserted_cbam(wrapper, where):
    """It keeps the name that insert_cbam returned."""
    model = small_resnet().eval()
    inserted = insert_cbam(model, where=where, example_input=image(1))
    expected = attention_maps(model, image())
    holder = model.layer2 if where == "each_layer" else model.layer2[0]
    holder.cbam = wrapper(holder.cbam)
    with torch.no_grad():
        model(image())  # compiled, it does not see the hooks
    maps = attention_maps(model, image())
    assert list(maps) == list(inserted)
    for name in inserted:
        torch.testing.assert_close(maps[name], expected[name])


def test_a_wrapper_that_is_more_than_cbam():
    model = small_resnet().eval()
    inserted = insert_cbam(model, where="each_layer", example_input=image(1))
    model.layer2.cbam = nn.Sequential(model.layer2.cbam, nn.Dropout())
    assert list(attention_maps(model, image())) == list(inserted)
    model.layer2.cbam = torch.jit.trace(model.layer2.cbam[0], torch.randn(1, 128, 8, 8))
    with pytest.raises(TypeError, match=r"layer2\.cbam: TopLevelTracedModule must have gates\(x\)"):
        attention_maps(model, image())
    model.layer2.cbam = CBAM(128)  # a replacement
    assert list(attention_maps(model, image())) == list(inserted)


def test_errors():
    with pytest.raises(ValueError, match="ResNet has no CBAM"):
        attention_maps(small_resnet(), image())
    model = small_resnet()
    insert_cbam(model, ["layer1"], factory=lambda *a: nn.Identity(), example_input=image(1))
    with pytest.raises(TypeError, match=r"Identity must have gates\(x\)"):
        attention_maps(model, image())
