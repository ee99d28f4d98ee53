"""The garbage classifier: Grad-CAM and explain."""

import shutil

import numpy as np
import pytest
import torch
from garbage_runs import files_below
from PIL import Image
from torch import nn

from garbage.model.classifier import build_model
from garbage.report.grad_cam import grad_cam, last_feature_map
from garbage.report.heat import overlay, spread
from train_example import main


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model("resnet18", 5, "each_layer").eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_grad_cam_of_a_linear_head_is_its_weights():
    """With mean pooling and a linear layer dy_k/dA_c = W_kc / HW, so the map is relu(Σ_c W_kc A_c) up to scale."""
    torch.manual_seed(1)
    features = nn.Conv2d(3, 6, 3)
    head = nn.Linear(6, 4)
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double()
    x, targets = torch.randn(5, 3, 10, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    expected = torch.einsum("nc,nchw->nhw", head.weight[targets], features(x)).relu().detach()
    torch.testing.assert_close(grad_cam(model, x, targets), expected / expected.amax((1, 2), keepdim=True))


def test_of_the_fused_and_of_the_plain_network_are_equal(network, x):
    plain = build_model("resnet18", 5, "each_layer", "reference").eval()
    plain.load_state_dict(network.state_dict())
    targets = torch.tensor([0, 3, 4])
    maps = grad_cam(network, x, targets)
    assert maps.shape == (3, 2, 2) and maps.min() >= 0 and maps.max() == 1
    torch.testing.assert_close(maps, grad_cam(plain, x, targets), atol=1e-4, rtol=1e-3)


def test_each_image_has_its_own_map_and_the_model_stays_as_it_is(network, x):
    targets = torch.tensor([2, 0, 1])
    maps = grad_cam(network, x, targets, network.layer3)
    assert maps.shape == (3, 4, 4)
    for i in range(3):
        alone = grad_cam(network, x[i : i + 1], targets[i : i + 1], network.layer3)[0]
        torch.testing.assert_close(maps[i], alone, atol=1e-4, rtol=1e-3)
    assert not any(m._forward_hooks for name, m in network.named_modules() if not name.startswith("layer"))
    assert all(p.grad is None for p in network.parameters()) and not network.training


def test_layers_that_work_in_place_and_frozen_networks():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, targets = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    before = grad_cam(model, x, targets, model[0])
    assert not torch.equal(before, grad_cam(model, x, targets, model[1])) or before.eq(0).all()
    gradient = (model[0](x).detach() > 0).float().mean((2, 3), keepdim=True)  # of relu, up to scale; one channel asked
    chosen = torch.stack([gradient[i, t] * model[0](x)[i, t].detach() for i, t in enumerate(targets)]).relu()
    torch.testing.assert_close(before, chosen / chosen.amax((1, 2), keepdim=True))
    model.requires_grad_(False)
    torch.testing.assert_close(grad_cam(model, x, targets, model[0]), before)


@pytest.mark.parametrize(
    ("arch", "name"), [("resnet18", "layer4"), ("mobilenet_v3_small", "features"), ("swin_t", "permute")]
)
def test_the_last_feature_map(arch, name):
    import torchvision

    model = torchvision.models.get_model(arch, weights=None).eval()
    assert last_feature_map(model, torch.randn(1, 3, 64, 64)) is model.get_submodule(name)


def test_a_model_without_feature_map_is_refused():
    with pytest.raises(ValueError, match="Sequential has no module whose output is a feature map"):
        grad_cam(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2), torch.tensor([0]))


def test_overlay_is_red_where_it_is_hot():
    image = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    pixels = np.asarray(overlay(image, torch.tensor([[0.4, 0.6]])), float)
    assert pixels.shape == (32, 32, 3)
    assert (pixels[:, -1, 0] > pixels[:, -1, 2]).all() and (pixels[:, 0, 0] <= pixels[:, 0, 2]).all()
    assert np.ptp(np.asarray(overlay(image, torch.zeros(2, 2))), axis=(0, 1)).max() == 0


def test_spread():
    names = [str(i) for i in range(1, 17)]
    assert spread(names, 4) == ["4", "8", "12", "16"] and spread(names, 20) == names
    assert len(set(spread(names, 6))) == 6 and spread(names, 6)[-1] == "16"


def test_a_figure_for_each_image(run, drawn, tmp_path, capsys):
    folder, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(drawn / "val" / "metal", folder / "metal")
    shutil.copy(drawn / "val" / "paper" / "0000.png", folder / "b.png")
    (folder / "broken.png").write_bytes(b"")
    before = files_below(folder)
    assert main(["explain", "--run", str(run), "--class", "paper", "--out", str(out), str(folder)]) == 0
    assert set(files_below(out)) == {"b.png", "metal/0000.png"} and files_below(folder) == before
    output = capsys.readouterr().out
    assert f"skipped {folder / 'broken.png'}: " in output and "explained 2 images" in output
    with Image.open(out / "b.png") as image:
        assert image.width == 6 * 300  # the image, Grad-CAM, four CBAMs
        assert len(image.convert("RGB").getcolors(1 << 24)) > 5000


def test_without_cbam_there_is_grad_cam_alone(run, drawn, tmp_path, capsys):
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    network = build_model("resnet18", 12, "none")
    torch.save(checkpoint | {"cbam": "none", "state_dict": network.state_dict()}, tmp_path / "plain.pt")
    image = drawn / "val" / "metal" / "0000.png"
    assert main(["explain", "--run", str(tmp_path / "plain.pt"), str(image)]) == 0
    assert "has no CBAM" in capsys.readouterr().out
    with Image.open(tmp_path / "explanations" / "0000.png") as image:
        assert image.width == 2 * 300


def test_explain_refuses(run, drawn, tmp_path, capsys):
    folder = str(drawn / "val" / "metal")
    assert main(["explain", "--run", str(run), "--class", "metall", "--out", str(tmp_path / "out"), folder]) == 2
    assert "does not know the class 'metall'; it knows battery, " in capsys.readouterr().err
    assert main(["explain", "--run", str(run), "--out", folder, folder]) == 2
    assert "where the images are; name another folder" in capsys.readouterr().err
    assert main(["explain", "--run", str(run), "--out", str(tmp_path / "out"), str(tmp_path / "gone.png")]) == 1
    assert not (tmp_path / "out").exists()
