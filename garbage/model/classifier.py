"""The classifier: any classifier of torchvision, with CBAM."""

import difflib
import functools

import torch
import torchvision
from torch import nn

import cbam_fused
from cbam_fused import routing
from cbam_fused.surgery.presets import PRESETS

from .. import InputError
from .weights import Weights, load_weights

INITS = ("default", "identity")
BACKENDS = {"fused": cbam_fused.CBAM, "reference": cbam_fused.reference.CBAM}
# Two networks have a second head in training; without it they return logits like all others. Their weights use another
# normalisation, which they apply themselves.
ONE_HEAD = {"aux_logits": False, "transform_input": True}
ARGUMENTS = {"googlenet": ONE_HEAD, "inception_v3": ONE_HEAD}


def build_model(
    arch: str,
    num_classes: int,
    cbam: str = "each_layer",
    backend: str = "fused",
    cbam_init: str = "default",
    weights: Weights | None = None,
    zero_init_residual: bool = False,
    classes: list[str] | None = None,
) -> nn.Module:
    """A network (N, 3, H, W) -> logits (N, num_classes).

    Args:
        arch: the name of a classifier in torchvision.models.
        cbam: a preset of insert_cbam, "none", or comma-separated names of sub-modules.
        backend: one of BACKENDS; both have the same initial parameters for the same random state.
        cbam_init: one of INITS; "identity" adds biases to the gates, which it needs.
        weights: initial weights for load_weights, with or without those of CBAM.
        zero_init_residual: ResNets only: initialise residual branches to zero (Goyal et al., 2017).
        classes: names that match the rows of the last layer in the weights.

    Raises:
        InputError: an unknown arch or cbam, or weights of another network.
    """
    if arch not in architectures():
        near = difflib.get_close_matches(arch, architectures(), n=3)
        raise InputError(
            f"arch: torchvision has no classifier {arch!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    arguments = ARGUMENTS.get(arch, {}) | ({"zero_init_residual": True} if zero_init_residual else {})
    try:
        model = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **arguments)
    except TypeError:
        raise InputError(f"zero_init_residual: {arch} is not a ResNet") from None
    head = head_name(model)
    of_cbam = set()
    if weights:  # before the insertion, which measures the identity with these weights
        of_cbam = {key for key in weights.state if "cbam" in key.split(".")}
        backbone = weights._replace(state={k: v for k, v in weights.state.items() if k not in of_cbam})
        load_weights(model, backbone, head, classes)
    if cbam != "none":
        place = {"where": cbam} if cbam in PRESETS else {"after": [name.strip() for name in cbam.split(",")]}
        biases = {"bias": True, "spatial_bias": True} if cbam_init == "identity" else {}
        try:
            cbam_fused.insert_cbam(
                model, **place, factory=functools.partial(BACKENDS[backend], **biases), init=cbam_init
            )
        except ValueError as error:
            presets = ", ".join((*PRESETS, "none"))
            raise InputError(f"cbam={cbam} with {arch}: {error}. It is one of {presets}, or names of layers") from error
    if weights and of_cbam:
        load_weights(model, weights, head, classes)
    return model


@functools.cache
def architectures() -> tuple[str, ...]:
    """Names of all classifiers in torchvision."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def head_name(model: nn.Module) -> str:
    """The last layer of one of these networks: a Linear, or a convolution in SqueezeNet."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def check_backend(device: torch.device) -> None:
    """Raise InputError if CBAM_FUSED_BACKEND names a backend without kernels for the device."""
    try:
        routing.backend_for(torch.empty(0, device=device))
    except RuntimeError as error:
        raise InputError(str(error)) from None


def check_size(model: nn.Module, side: int) -> None:
    """Raise InputError unless the network accepts images of this side."""
    device = next(model.parameters()).device
    mode = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, side, side, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"{type(model).__name__} takes no images of {side} x {side} pixels: {error}") from error
    finally:
        model.train(mode)
