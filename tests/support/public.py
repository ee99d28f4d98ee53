"""Public CBAMs for the tests: those of PyPI packages, and others rebuilt from their formulas and names.

``PUBLIC[variant](channels, reduction)`` builds one. Layers have the original's names and order.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_fused import export_state_dict


class Rebuilt(nn.Module):
    """Layers under dotted names, and a formula of x and the layers in this order."""

    def __init__(self, formula, layers: dict[str, nn.Module]):
        super().__init__()
        self.formula, self.names = formula, tuple(layers)
        for name, layer in layers.items():
            module = self
            *outer, last = name.split(".")
            for part in outer:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.add_module(last, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, *(self.get_submodule(name) for name in self.names))


def conv_mask(x, fc1, fc2):
    pools = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    return torch.sigmoid(fc2(F.relu(fc1(pools[0]))) + fc2(F.relu(fc1(pools[1]))))


def linear_mask(x, fc1, fc2, act=F.relu):
    pools = x.mean((2, 3)), F.max_pool2d(x, x.shape[2:]).flatten(1)
    return torch.sigmoid(fc2(act(fc1(pools[0]))) + fc2(act(fc1(pools[1]))))[:, :, None, None]


def mean_first(x, conv):
    return torch.sigmoid(conv(torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)))


def max_first(x, conv, norm=None):
    logits = conv(torch.cat([x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)], 1))
    return torch.sigmoid(logits if norm is None else norm(logits))


def tutorial(x, fc1, fc2, conv):
    x = conv_mask(x, fc1, fc2) * x
    return mean_first(x, conv) * x


def tutorial_max_first(x, fc1, fc2, conv):
    x = conv_mask(x, fc1, fc2) * x
    return max_first(x, conv) * x


def linear(x, fc1, fc2, conv, act=F.relu):
    x = x * linear_mask(x, fc1, fc2, act)
    return x * mean_first(x, conv)


def official(x, fc1, fc2, conv, norm):
    x = x * linear_mask(x, fc1, fc2)
    return x * max_first(x, conv, norm)


def external_attention(x, fc1, fc2, conv):
    return x + tutorial_max_first(x, fc1, fc2, conv)


def peachypie98(x, conv, fc1, fc2):
    y = x * linear_mask(x, fc1, fc2)
    return y * max_first(y, conv) + x


def hyso(x, fc1, fc2, conv):
    return linear(x, fc1, fc2, conv, F.silu)


def ultralytics(x, fc, conv):
    x = x * torch.sigmoid(fc(F.adaptive_avg_pool2d(x, 1)))
    return x * mean_first(x, conv)


def se_conv(x, fc1, fc2):
    return torch.sigmoid(fc2(F.relu(fc1(F.adaptive_avg_pool2d(x, 1))))) * x


def se_linear(x, fc1, fc2):
    return x * torch.sigmoid(fc2(F.relu(fc1(x.mean((2, 3))))))[:, :, None, None]


class ChannelMask(nn.Module):
    """A mask with unique names, like the next."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.squeeze, self.excite = (
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x):
        return conv_mask(x, self.squeeze, self.excite)


class SpatialMask(nn.Module):
    def __init__(self, order=mean_first):
        super().__init__()
        self.order, self.look = order, nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        return self.order(x, self.look)


def _spatial(kernel_size=7, bias=False):
    return nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=bias)


def _rebuilt(formula, fc1, fc2, conv, *, linear=False, bias=False, spatial_bias=False, k=7, norm="", width=None):
    """A builder; the MLP's layers are of this kind, and their width is C // r or as ``width(C, r)`` says."""

    def build(channels: int, reduction: int) -> Rebuilt:
        hidden = width(channels, reduction) if width else channels // reduction
        layer = nn.Linear if linear else functools.partial(nn.Conv2d, kernel_size=1)
        layers = {fc1: layer(channels, hidden, bias=bias), fc2: layer(hidden, channels, bias=bias)}
        if conv:
            layers[conv] = _spatial(k, spatial_bias)
        if norm:
            layers[norm] = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)
        return Rebuilt(formula, layers)

    return build


def _peachypie98(channels, reduction):
    fc1, fc2 = nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, channels)
    return Rebuilt(peachypie98, {"sam.conv": _spatial(), "cam.linear.0": fc1, "cam.linear.2": fc2})


def _ultralytics(channels, reduction):
    layers = {"channel_attention.fc": nn.Conv2d(channels, channels, 1), "spatial_attention.cv1": _spatial()}
    return Rebuilt(ultralytics, layers)


def _timm(name):
    def build(channels, reduction):
        timm_cbam = pytest.importorskip("timm.layers.cbam", reason="timm is not installed")
        return getattr(timm_cbam, name)(channels, rd_ratio=1 / reduction)

    return build


def _pytorchcv(channels, reduction):
    models = pytest.importorskip("pytorchcv.models.cbamresnet", reason="pytorchcv is not installed")
    return models.CbamBlock(channels, reduction)


def _timm_se(name, given, **arguments):
    """given: arguments as they are; arguments: what each is made of."""

    def build(channels, reduction):
        layers = pytest.importorskip("timm.layers", reason="timm is not installed")
        return getattr(layers, name)(channels, **given | {n: of(channels, reduction) for n, of in arguments.items()})

    return build


def _timm_squeeze_excite(channels, reduction):
    blocks = pytest.importorskip("timm.models._efficientnet_blocks", reason="timm is not installed")
    return blocks.SqueezeExcite(channels, rd_ratio=1 / reduction)


def _torchvision_se(channels, reduction):
    from torchvision.ops import SqueezeExcitation

    return SqueezeExcitation(channels, channels // reduction)


_FORK = {"linear": True, "bias": True, "norm": "SpatialGate.spatial.bn"}
_EXTERNAL = ("ca.se.0", "ca.se.2", "sa.conv")
_CA, _SA = "channel_attention", "spatial_attention"

PUBLIC = {
    "tutorial": _rebuilt(tutorial, "ca.fc1", "ca.fc2", "sa.conv1", width=lambda C, r: max(1, C // r)),
    "luuuyi": _rebuilt(tutorial, "ca.fc.0", "ca.fc.2", "sa.conv1", width=lambda C, r: C // 16),
    "bubbliiiing": _rebuilt(tutorial, "channelattention.fc1", "channelattention.fc2", "spatialattention.conv1"),
    "shared_mlp": _rebuilt(tutorial, "ca.sharedMLP.0", "ca.sharedMLP.2", "sa.conv1"),
    "shared_mlp_conv": _rebuilt(tutorial, "ca.sharedMLP.0", "ca.sharedMLP.2", "sa.conv"),
    "unet": _rebuilt(tutorial, f"{_CA}.shared_MLP.0", f"{_CA}.shared_MLP.2", f"{_SA}.conv2d", spatial_bias=True),
    "leomjl": _rebuilt(tutorial, f"{_CA}.fc.0", f"{_CA}.fc.2", f"{_SA}.conv"),
    "shared_mlp_snake": _rebuilt(tutorial, f"{_CA}.shared_mlp.0", f"{_CA}.shared_mlp.2", f"{_SA}.conv"),
    "mlp": _rebuilt(tutorial, "channel_attn.mlp.0", "channel_attn.mlp.2", "spatial_attn.conv1"),
    "yolov5": _rebuilt(tutorial, f"{_CA}.f1", f"{_CA}.f2", f"{_SA}.conv"),
    "cbam_layer": _rebuilt(tutorial_max_first, "mlp.0", "mlp.2", "conv"),
    "linear": _rebuilt(linear, "channel_attn.fc.0", "channel_attn.fc.2", "spatial_attn.conv", linear=True),
    "external_attention": _rebuilt(external_attention, *_EXTERNAL, spatial_bias=True, k=49),
    "external_attention_yolo": _rebuilt(tutorial_max_first, *_EXTERNAL, spatial_bias=True),
    "official": _rebuilt(official, "ChannelGate.mlp.1", "ChannelGate.mlp.3", "SpatialGate.spatial.conv", **_FORK),
    "official_no_flatten": _rebuilt(
        official, "ChannelGate.mlp.0", "ChannelGate.mlp.2", "SpatialGate.spatial.conv", **_FORK
    ),
    "official_renamed": _rebuilt(
        official,
        f"{_CA}.shared_mlp.1",
        f"{_CA}.shared_mlp.3",
        f"{_SA}.spatial_attention.0",
        **_FORK | {"norm": f"{_SA}.spatial_attention.1"},
    ),
    "pytorchcv": _pytorchcv,
    "peachypie98": _peachypie98,
    "hyso": _rebuilt(
        *(hyso, "fc1", "fc2", "conv_spatial"),
        linear=True,
        bias=True,
        spatial_bias=True,
        width=lambda C, r: max(1, C // r),
    ),
    "mmyolo": _rebuilt(
        tutorial, f"{_CA}.fc.0.conv", f"{_CA}.fc.1.conv", f"{_SA}.conv.conv", bias=True, spatial_bias=True
    ),
    "timm": _timm("CbamModule"),
    "timm_light": _timm("LightCbamModule"),
    "ultralytics": _ultralytics,
    "torchvision_se": _torchvision_se,
    "timm_se": _timm_se("SEModule", {}, rd_ratio=lambda C, r: 1 / r),
    "timm_se_maxpool": _timm_se("SEModule", {"add_maxpool": True}, rd_ratio=lambda C, r: 1 / r),
    "timm_squeeze_excite": _timm_squeeze_excite,
    "timm_effective_se": _timm_se("EffectiveSEModule", {}),
    "timm_effective_se_maxpool": _timm_se("EffectiveSEModule", {"add_maxpool": True}),
    "monai_se": _rebuilt(se_linear, "fc.0", "fc.2", "", linear=True, bias=True),
}


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with random state, so that none is 0 or 1 by its initialisation."""
    rng = torch.Generator().manual_seed(seed)
    module = module.double()
    for name, t in module.state_dict().items():
        if t.is_floating_point():
            values = torch.randn(t.shape, generator=rng, dtype=torch.float64) / max(1, t[:1].numel()) ** 0.5
            t.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return module


X = torch.randn(2, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def results(model, x=X):
    """Outputs, input gradient and parameter gradients by name, in eval and in training mode."""
    found = []
    for training in (False, True):
        x = x.detach().clone().requires_grad_()
        model.train(training).zero_grad()
        y = model(x)
        y.mul(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        found.append((y.detach(), x.grad, {n: p.grad for n, p in model.named_parameters()}))
    return found


def images(channels, tied, size=(3, 9, 7)):
    N, H, W = size
    x = torch.randn(N, channels, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(channels))
    if tied:
        x.relu_()
        x[:, 1] = 0
    return x.requires_grad_()


def under_public_names(module, grads, variant):
    """Gradients of our parameters under the names, shapes and order of the variant."""
    holder = copy.deepcopy(module)
    for name, p in holder.named_parameters():
        p.data = grads[name]
    return export_state_dict(holder, variant)


def run(module, x):
    y = module(x)
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7))
    names, params = zip(*module.named_parameters(), strict=True)
    dx, *grads = torch.autograd.grad(y, [x, *params], dy)
    return y.detach(), dx, dict(zip(names, grads, strict=True))
