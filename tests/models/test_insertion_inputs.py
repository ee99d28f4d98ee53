"""Insertion into models of other inputs than one image: tuples, dictionaries, lists, fixed sizes."""

import copy

import pytest
import torch
import torchvision
from anatomy import anatomy
from insertion import count, small
from torch import nn

from cbam_fused import insert_cbam
from cbam_fused.surgery import attention_maps


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8 * 10 * 10, 2)

    def forward(self, image, mask):
        return {"logits": self.fc((self.a(image) + self.b(mask)).flatten(1))}


class OfADictionary(TwoInputs):
    def forward(self, batch):
        return super().forward(batch["image"], batch["mask"])


X, MASK = small(), small()[:, :1]


@pytest.mark.parametrize(
    "model,example",
    [
        (TwoInputs(), (X, MASK)),
        (TwoInputs(), {"image": X, "mask": MASK}),
        (TwoInputs(), {"mask": MASK, "image": X}),
        (OfADictionary(), {"image": X, "mask": MASK}),
        (OfADictionary(), ({"image": X, "mask": MASK},)),
        (OfADictionary(), {"batch": {"image": X, "mask": MASK}}),
    ],
)
def test_models_of_other_inputs(model, example):
    model = copy.deepcopy(model)
    before = anatomy(model)
    kind = type(model).__name__
    message = rf"example_input must be a tensor, a tuple .* or a dictionary: {kind} .* \(1, 3, 224, 224\)"
    with pytest.raises(ValueError, match=message):
        insert_cbam(model, ["a"])
    assert anatomy(model) == before
    assert list(insert_cbam(model, ["a", "b"], example_input=example)) == ["a.cbam", "b.cbam"]
    assert list(attention_maps(model, example)) == ["a.cbam", "b.cbam"]


def test_a_model_of_a_fixed_size_and_one_that_takes_a_list():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 2))
    with pytest.raises(ValueError, match=r"example_input must be .* noise of shape \(1, 1, 224, 224\)"):
        insert_cbam(model, ["0"])
    assert list(insert_cbam(model, ["0"], example_input=torch.zeros(1, 1, 28, 28))) == ["0.cbam"]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # the model's error for the user's example
        insert_cbam(model, ["0"], example_input=torch.zeros(1, 1, 29, 28))
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    images = [torch.rand(3, 64, 48), torch.rand(3, 40, 64)]  # it needs targets in training, so only eval mode runs
    inserted = insert_cbam(detector, ["backbone.features.0.0"], example_input=images)
    assert count(detector, inserted, images, False) == [1]


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

    def forward(self, a, b):
        return self.encoder(a) - self.encoder(b)


def test_a_shared_encoder():
    model = Siamese()
    inserted = insert_cbam(model, ["encoder"], example_input=(X, X.flip(3)))
    with torch.no_grad():
        assert model(X, X).abs().max() == 0
    calls = []
    inserted["encoder.cbam"].register_forward_hook(lambda *_: calls.append(1))
    model(X, X)
    assert len(calls) == 2
