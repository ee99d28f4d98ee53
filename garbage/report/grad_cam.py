"""Grad-CAM: the parts of an image that support a class."""

import torch
from torch import Tensor, nn


def grad_cam(model: nn.Module, x: Tensor, targets: Tensor, layer: nn.Module | None = None) -> Tensor:
    """Grad-CAM maps (Selvaraju et al., ICCV 2017), with values in [0, 1]; all 0 if nothing supports the class.

    With A the layer's output and y the logit of the target class: relu(Σ_c w_c A_c), w_c = mean over the pixels of
    dy/dA_c; then divided by its maximum.

    Args:
        model: in eval mode, (N, 3, H, W) -> logits (N, K).
        x: float (N, 3, H, W).
        targets: int64 (N,), the target classes.
        layer: a module whose output is (N, C, h, w); default: last_feature_map.

    Returns:
        float (N, h, w).
    """
    activations: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        activations.append(output)
        return output.clone()  # the next module may work in place

    hook = (layer or last_feature_map(model, x)).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(x.detach().requires_grad_())
            score = logits.gather(1, targets[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, activations[-1])
    finally:
        hook.remove()
    maps = (gradient.mean((2, 3), keepdim=True) * activations[-1]).sum(1).relu().detach()
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@torch.no_grad()
def last_feature_map(model: nn.Module, x: Tensor) -> nn.Module:
    """The last module, in the order of the forward pass, whose output (N, C, h, w) has more than one pixel.

    For a ResNet this is layer4, including its CBAM.

    Raises:
        ValueError: the model has no such module.
    """
    found: list[nn.Module] = []

    def record(module: nn.Module, args: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
            found.append(module)

    hooks = [module.register_forward_hook(record) for module in model.modules()]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(f"{type(model).__name__} has no module whose output is a feature map (N, C, H, W)")
    return found[-1]
