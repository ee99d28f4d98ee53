"""The places of CBAM in known networks; docs/guide/surgery.md lists them."""

import itertools
import re
from collections.abc import Callable

from torch import nn

from .dry_run import Seen, channel_axis
from .residual import is_residual_block, why_not_residual
from .selection import CHILD, nearest

Image = tuple[int, int] | None  # its height and width
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def preset_places(preset: str, model: nn.Module, seen: Seen, image: Image) -> list[str]:
    """The names of the sub-modules that CBAM follows.

    Args:
        preset: one of PRESETS.
        seen: the outputs of every sub-module in a forward pass.
        image: height and width of its image.

    Raises:
        ValueError: an unknown preset (with the nearest ones), or one that does not fit the network.
    """
    if preset not in PRESETS:
        hint = "; names of sub-modules go to after=" if preset in dict(model.named_modules()) else ""
        raise ValueError(f"where: unknown preset {preset!r}{nearest(preset, PRESETS)}{hint}")
    places = PRESETS[preset](model, seen, image)
    if not places:
        raise ValueError(
            f"where: the preset {preset!r} does not fit {type(model).__name__}: {NEEDS[preset]}; "
            "name the places with after=, or give a pattern or predicate"
        )
    return places


def _each_layer(model: nn.Module, seen: Seen, image: Image) -> list[str]:
    """The end of every stage."""
    layers = [n for n, _ in model.named_children() if re.fullmatch(r"layer\d+", n)]
    if layers:
        return layers
    names = [f"features.{n}" for n in _features(model)]
    if "features.norm5" in names:  # DenseNet: its blocks also return their inputs; transitions follow them
        return [n for n in names if "transition" in n or n == "features.norm5"]
    outputs = {n: seen[m] for n in names if (m := model.get_submodule(n)) in seen}
    maps = {n: shape for n, (first, *_) in outputs.items() if len(shape := first.shape or ()) == 4}
    stages = _by_size(model, maps, image)
    return [stage[-1] for stage in stages if stage != names[:1] and not _all_pools(model, stage)]


def _by_size(model: nn.Module, maps: dict[str, tuple[int, ...]], image: Image) -> list[list[str]]:
    """Groups of successive modules whose outputs have the same height and width."""

    def size(name: str) -> tuple[int, ...]:
        shape = maps[name]
        return shape[2:] if channel_axis(model, shape, image) == 1 else shape[1:3]

    return [list(group) for _, group in itertools.groupby(maps, size)]


def _all_pools(model: nn.Module, names: list[str]) -> bool:
    return all(isinstance(model.get_submodule(n), POOLS) for n in names)


def _last(model: nn.Module, seen: Seen, image: Image) -> list[str]:
    return _each_layer(model, seen, image)[-1:]


def _stem_last(model: nn.Module, seen: Seen, image: Image) -> list[str]:
    stem, last = _stem(model), _last(model, seen, image)
    return [stem, *last] if stem and last and [stem] != last else []


def _stem(model: nn.Module) -> str | None:
    """The module before the first pooling, or the first module if that is a block."""
    features = _features(model)
    if features and any(True for _ in features[next(iter(features))].children()):
        return f"features.{next(iter(features))}"
    prefix, modules = ("features.", features) if features else ("", dict(model.named_children()))
    for name, following in itertools.pairwise(modules):
        if isinstance(modules[following], nn.MaxPool2d):
            return f"{prefix}{name}"
    return None


def _in_block(model: nn.Module, seen: Seen, image: Image) -> list[str]:
    """Residual blocks of ResNet; in other blocks with an addition, the Sequential that is added."""
    places = []
    for name, module in model.named_modules():
        if is_residual_block(module):
            if not hasattr(module, CHILD) and (reason := why_not_residual(module)):
                raise ValueError(
                    f"where: {name!r} looks like a block of ResNet but {reason}; name the last module of each branch "
                    f"with after=, such as {f'{name}.bn3' if hasattr(module, 'conv3') else f'{name}.bn2'!r}"
                )
            places.append(name)
        # MobileNet and EfficientNet have the flag, ConvNeXt has the scale.
        if getattr(module, "use_res_connect", False) or hasattr(module, "layer_scale"):
            branches = [
                n for n, m in module.named_children() if n in ("block", "conv") and isinstance(m, nn.Sequential)
            ]
            places += [f"{name}.{n}" for n in branches]
    return places


def _features(model: nn.Module) -> dict[str, nn.Module]:
    features = getattr(model, "features", None)
    return dict(features.named_children()) if isinstance(features, nn.Sequential) else {}


PRESETS: dict[str, Callable[[nn.Module, Seen, Image], list[str]]] = {
    "each_layer": _each_layer,
    "stem_last": _stem_last,
    "last": _last,
    "in_block": _in_block,
}
STAGES = "it has neither layer1, layer2, ... nor a Sequential named features"
NEEDS = {
    "each_layer": STAGES,
    "stem_last": f"{STAGES}, or no stem before them",
    "last": STAGES,
    "in_block": "it has no residual blocks as torchvision makes them for ResNet, MobileNet, EfficientNet and ConvNeXt",
}
