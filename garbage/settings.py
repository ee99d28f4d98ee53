"""The settings of a run: a table, read from the command line, a file, or a run's config.json."""

import dataclasses
import difflib
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from . import InputError
from .model.classifier import BACKENDS, INITS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT = "environment"  # the entry of a run's config.json that is not a setting
SAMPLE_RECIPE = Path(__file__).parent / "recipes" / "sample_set.toml"
LR = {("sgd", False): 0.05, ("sgd", True): 0.01, ("adamw", False): 1e-3, ("adamw", True): 2e-4}
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
WARMUP = 2.0


def _setting(default: Any, help: str, **limits: Any) -> Any:
    """A field with its help text, and limits: low (inclusive), above (exclusive), high (inclusive), choices."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Settings:
    """The settings of a run. data is None for the built-in sample set.

    Raises:
        InputError: a value out of range, or two that exclude each other.
    """

    data: str | None
    arch: str = _setting("resnet18", "any classifier of torchvision: resnet18 ... resnet152, mobilenet_v2, ...")
    cbam: str = _setting(
        "each_layer", "where CBAM goes: each_layer, in_block, stem_last, last, none, or names of layers with commas"
    )
    cbam_init: str = _setting(
        "default",
        "identity: CBAM with biases that starts by passing its input on, for weights that exist",
        choices=INITS,
    )
    zero_init_residual: bool = _setting(False, "ResNet: initialise residual branches to zero")
    backend: str = _setting("fused", "CBAM's kernels, or plain PyTorch", choices=tuple(BACKENDS))
    pretrained: bool = _setting(False, "start from torchvision's ImageNet weights")
    weights: str | None = _setting(None, "start from the weights in this file: a state_dict, or a checkpoint of a run")
    freeze: str = _setting("none", "backbone: train only CBAM and the last layer", choices=("none", "backbone"))
    unfreeze: tuple[str, ...] = _setting((), "with freeze: EPOCH:LAYER ..., trained from that epoch on; EPOCH:all")
    epochs: int = _setting(30, "passes over the training images", low=1)
    batch_size: int = _setting(32, "images per step, over all processes", low=2)
    image_size: int = _setting(160, "side of the images in pixels", low=32)
    train_sizes: tuple[str, ...] = _setting((), "EPOCH:SIDE ..., side in training from that epoch on")
    optimizer: str = _setting("sgd", "SGD with Nesterov momentum, or AdamW", choices=("sgd", "adamw"))
    lr: float | None = _setting(
        None,
        f"peak learning rate (default: {LR['sgd', False]} for sgd, "
        f"{LR['adamw', False]} for adamw, a fifth with weights to start from)",
        above=0,
    )
    backbone_lr: float = _setting(1.0, "factor on lr for all layers except CBAM and the last one", above=0)
    cbam_lr: float = _setting(
        1.0, "factor on lr for CBAM: 0.1 keeps its MLPs alive where SGD trains from scratch", above=0
    )
    weight_decay: float | None = _setting(
        None, f"default: {WEIGHT_DECAY['sgd']} for sgd, {WEIGHT_DECAY['adamw']} for adamw", low=0
    )
    decay_all: bool = _setting(True, "weight decay also on biases and the weights of BatchNorm")
    schedule: str = _setting("cosine", "decay of lr after the warm-up", choices=("cosine", "step"))
    warmup_epochs: float | None = _setting(
        None,
        f"epochs in which lr rises, at most half of all (default: {WARMUP:g}, or half of all if that is less)",
        low=0,
    )
    min_lr: float = _setting(0.0, "cosine: final lr, as a fraction of lr", low=0, high=1)
    step_epochs: int = _setting(10, "step: epochs between decays, from the end of the warm-up on", low=1)
    step_factor: float = _setting(0.1, "step: factor of each decay", above=0, high=1)
    label_smoothing: float = _setting(0.1, "of the loss in training", low=0, high=0.99)
    crop_scale: float = _setting(0.65, "smallest area of a random crop, as a fraction of the image", above=0, high=1)
    augment: str = _setting("none", "torchvision's policy", choices=("none", "trivial", "rand", "auto"))
    erasing: float = _setting(0.0, "probability that a random rectangle is erased", low=0, high=1)
    mixup: float = _setting(0.0, "alpha of mixup; 0: none", low=0)
    cutmix: float = _setting(0.0, "alpha of CutMix; 0: none. With mixup: one of the two at random", low=0)
    balance: str = _setting(
        "none",
        "for classes of different size: weights in the loss, or a sampler",
        choices=("none", "weights", "sampler"),
    )
    ema: float = _setting(
        0.0, "decay per step of averaged weights, which are then evaluated; 0: none", low=0, high=0.99999
    )
    amp: str = _setting("none", "automatic mixed precision", choices=("none", "bf16", "fp16"))
    channels_last: bool = _setting(True, "memory layout")
    compile: bool = _setting(False, "torch.compile")
    clip_grad: float | None = _setting(None, "largest norm of the gradient", above=0)
    patience: int | None = _setting(None, "stop after this many epochs without a new best one", low=1)
    sync_bn: bool = _setting(False, "several GPUs: BatchNorm over all processes")
    deterministic: bool = _setting(False, "only deterministic algorithms; CPU results are deterministic without it")
    workers: int = _setting(os.cpu_count() or 1, "threads or processes that decode", low=0)
    seed: int = _setting(0, "seed of weights, order and augmentation", low=0)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _check(f.name, getattr(self, f.name), get_type_hints(Settings)[f.name], f.metadata)
        started = self.pretrained or self.weights is not None
        if self.pretrained and self.weights is not None:
            raise InputError("pretrained and weights exclude each other: both say what to start from")
        if self.cbam_init == "identity" and self.cbam == "none":
            raise InputError("cbam_init is identity, but cbam is none")
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs / 2:
            raise InputError(
                f"warmup_epochs must be at most {self.epochs / 2:g}, half of epochs, got {self.warmup_epochs:g}"
            )
        if self.unfreeze and self.freeze == "none":
            raise InputError("unfreeze needs freeze: nothing is frozen")
        for name, schedule in {"min_lr": "cosine", "step_epochs": "step", "step_factor": "step"}.items():
            if self.schedule != schedule and getattr(self, name) != getattr(Settings, name):
                raise InputError(f"{name} is of the schedule {schedule}, but schedule is {self.schedule}")
        for name in ("unfreeze", "train_sizes"):
            stages(name, getattr(self, name))
        for _, side in stages("train_sizes", self.train_sizes):
            if not side.isdecimal() or int(side) < 32:
                raise InputError(f"train_sizes must be EPOCH:SIDE with sides of at least 32, got {side!r}")
        # Frozen, but these two depend on others.
        if self.lr is None:
            object.__setattr__(self, "lr", LR[self.optimizer, started])
        if self.weight_decay is None:
            object.__setattr__(self, "weight_decay", WEIGHT_DECAY[self.optimizer])

    def train_size(self, epoch: int) -> int:
        """The side in pixels of training images in an epoch, counted from 1."""
        sides = [int(side) for first, side in stages("train_sizes", self.train_sizes) if first <= epoch]
        return sides[-1] if sides else self.image_size


def stages(name: str, entries: tuple[str, ...]) -> list[tuple[int, str]]:
    """("5:layer4", "8:all") as [(5, "layer4"), (8, "all")].

    Raises:
        InputError: an entry of another form, or epochs that do not increase.
    """
    found = [entry.partition(":") for entry in entries]
    if not all(epoch.isdecimal() and int(epoch) >= 1 and value for epoch, _, value in found):
        raise InputError(f"{name} must be EPOCH:VALUE ..., epochs counted from 1, got {' '.join(entries)}")
    epochs = [int(epoch) for epoch, _, _ in found]
    if epochs != sorted(set(epochs)):
        raise InputError(f"{name} must have each epoch once, in their order, got {' '.join(entries)}")
    return [(int(epoch), value) for epoch, _, value in found]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML or JSON file, by name; those of a run in its config.json.

    Raises:
        InputError: as read_file, an unknown setting, or an invalid value.
    """
    found = read_file(path)
    if found.pop(ENVIRONMENT, None) is not None:
        _as_it_was_run(found)
    fields, hints = {f.name: f for f in dataclasses.fields(Settings)}, get_type_hints(Settings)
    for name, value in found.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise InputError(f"{path}: there is no setting {name!r}" + (f"; the nearest is {near[0]}" if near else ""))
        found[name] = tuple(value) if isinstance(value, list) else value
        _check(name, found[name], hints[name], fields[name].metadata)
    return found


def _as_it_was_run(found: dict[str, Any]) -> None:
    """Old runs accepted a longer warm-up than possible and used half of their epochs."""
    warmup, epochs = found.get("warmup_epochs"), found.get("epochs")
    if isinstance(warmup, int | float) and isinstance(epochs, int) and warmup > epochs / 2:
        found["warmup_epochs"] = epochs / 2


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a TOML or JSON file, by name.

    Raises:
        InputError: no such file, not TOML or JSON, or JSON without names.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:  # both parsers raise ValueErrors
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be read: it must hold names with values, got {text.strip():.40}")
    return found


def _check(name: str, value: Any, hint: Any, limits: Any) -> None:
    kinds = [k for k in get_args(hint) if isinstance(k, type)] or [hint]
    if getattr(hint, "__origin__", None) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(v, str) for v in value)
        wanted = "a list of texts"
    else:
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        wanted = " or ".join({"NoneType": "nothing", "str": "a text"}.get(k.__name__, k.__name__) for k in kinds)
    if not fits:
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    if value is None or isinstance(value, bool):
        return
    if "choices" in limits and value not in limits["choices"]:
        raise InputError(f"{name} must be one of {', '.join(limits['choices'])}, got {value!r}")
    if "low" in limits and not value >= limits["low"]:
        raise InputError(f"{name} must be at least {limits['low']}, got {value}")
    if "above" in limits and not value > limits["above"]:
        raise InputError(f"{name} must be above {limits['above']}, got {value}")
    if "high" in limits and not value <= limits["high"]:
        raise InputError(f"{name} must be at most {limits['high']}, got {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value}")
