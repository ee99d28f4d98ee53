"""AttentionMaps.problems: sentences about faults of a CBAM's gates."""

import pytest
import torch
from torch import nn

import cbam_fused
from cbam_fused.surgery import AttentionMaps, attention_maps

torch.manual_seed(0)
CHANNEL, SPATIAL = torch.rand(4, 8, 1, 1) * 0.8 + 0.1, torch.rand(4, 1, 5, 6) * 0.8 + 0.1


def of(channel=CHANNEL, spatial=SPATIAL) -> list[str]:
    return AttentionMaps(channel, spatial).problems


def test_gates_that_work_have_no_problems():
    assert of() == of(None) == of(spatial=None) == of(None, None) == []
    assert of(CHANNEL.bfloat16(), SPATIAL.half()) == []


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (torch.full((4, 8, 1, 1), 0.5), "constant over channels and over images, about 0.50 everywhere; it no longer"),
        (torch.full((4, 8, 1, 1), 0.982), "constant over channels and over images, about 0.98 everywhere; it attends"),
        (CHANNEL[:1].expand(4, -1, -1, -1), "constant over images; it is a fixed scale"),
        (CHANNEL[:, :1].expand(-1, 8, -1, -1), "constant over channels, about"),
        ((CHANNEL > 0.5).float(), "saturated, 100% of its values within 0.01 of 0 or 1"),
        (CHANNEL * torch.nan, "NaN or infinite"),
        (torch.full((4, 1, 1, 1), 0.3), "constant over images"),  # a single channel is not constant over channels
    ],
)
def test_each_fault_of_a_channel_gate_has_its_sentence(channel, words):
    (text,) = of(channel)
    assert text.startswith(f"channel gate: {words}")
    assert of(channel + 1e-3 * (CHANNEL - 0.5)[:, : channel.shape[1]]) == of(
        channel
    )  # nearly constant counts as constant


@pytest.mark.parametrize(
    ("spatial", "words"),
    [
        (torch.full((4, 1, 5, 6), 0.7), "constant over positions and over images, about 0.70 everywhere"),
        (SPATIAL[:1].expand(4, -1, -1, -1), "constant over images"),
        (SPATIAL[:, :, :1, :1].expand(-1, -1, 5, 6), "constant over positions"),
        ((SPATIAL > 0.5).float(), "saturated"),
    ],
)
def test_each_fault_of_a_spatial_gate_has_its_sentence(spatial, words):
    (text,) = of(spatial=spatial)
    assert text.startswith(f"spatial gate: {words}")


def test_both_gates_and_several_faults_at_once():
    texts = of(torch.zeros(4, 8, 1, 1), torch.ones(4, 1, 5, 6))
    assert [text.split(":")[0] for text in texts] == ["channel gate"] * 2 + ["spatial gate"] * 2
    assert "constant" in texts[0] and "saturated" in texts[1]


def test_one_image_tells_nothing_about_differences_over_images():
    assert of(CHANNEL[:1], SPATIAL[:1]) == [] and of(CHANNEL[:0], SPATIAL[:0]) == []
    (text,) = of(torch.full((1, 8, 1, 1), 0.5))
    assert text.startswith("channel gate: constant over channels, about 0.50")
    assert of(spatial=torch.rand(4, 1, 1, 1)) == []  # nor is a map of one pixel constant over positions


def test_a_cbam_whose_mlp_has_died_is_found():
    """All weights of its hidden layer are negative: after a ReLU no input reaches the gate."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), cbam_fused.CBAM(32), nn.Conv2d(32, 32, 3), cbam_fused.CBAM(32)
    )
    with torch.no_grad():
        model[2].ca.fc1.weight.abs_().neg_()
        model[4].ca.fc2.weight.mul_(30)
    maps = attention_maps(model, torch.randn(4, 3, 16, 16))
    (text,) = [text for text in maps["2"].problems if text.startswith("channel")]
    assert "constant over channels and over images, about 0.50 everywhere" in text and "smaller steps" in text
    assert not [text for text in maps["4"].problems if text.startswith("channel")]
