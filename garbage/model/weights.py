"""Weights that a network starts from."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from .. import InputError

SHOWN = 5


def pretrained_weights(arch: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights, downloaded unless they are cached.

    Raises:
        InputError: they do not exist, or are neither cached nor to be downloaded.
    """
    try:
        weights = torchvision.models.get_model_weights(arch).DEFAULT
    except (ValueError, AttributeError):
        raise InputError(f"torchvision has no weights of {arch}; train without --pretrained") from None
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a damaged file
        raise InputError(
            f"the pretrained weights of {arch} cannot be downloaded ({error}); put {weights.url} "
            f"into {torch.hub.get_dir()}/checkpoints, or train without --pretrained"
        ) from error


def weights_in(path: Path, arch: str) -> dict[str, Tensor]:
    """The state_dict in a file: as it is, or as the entry ``state_dict`` or ``model`` of a checkpoint.

    Raises:
        InputError: no such file, no state_dict in it, or the checkpoint of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not a checkpoint fails in as many ways as there are files
        raise InputError(f"{path} holds no weights: {type(error).__name__}: {error}") from error
    if isinstance(content, dict) and content.get("arch", arch) != arch:
        raise InputError(f"{path} holds weights of {content['arch']}, not of {arch}")
    for entry in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not (isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values())):
        raise InputError(f"{path} holds no state_dict: a dictionary of tensors, by itself or as the entry state_dict")
    return {key.removeprefix("module."): value for key, value in content.items()}


def load_weights(model: nn.Module, weights: dict[str, Tensor], head: str) -> None:
    """Load a state_dict; a last layer for another number of classes keeps its initial values.

    Raises:
        InputError: the weights are those of another network; names that differ are given.
    """
    own = model.state_dict()
    of_head = {key for key in own if key.startswith(f"{head}.")}
    shape = {key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape}
    # What torchvision's files have for a second head in training, and old files lack.
    extra = {key for key in weights.keys() - own.keys() if not key.lower().startswith("aux")}
    missing = {key for key in own.keys() - weights.keys() if not key.endswith("num_batches_tracked")}
    problems = {
        "missing": missing - of_head,
        "not in the network": extra,
        "of another shape": shape - of_head,
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise InputError(f"the weights are not those of this {type(model).__name__}: {text}")
    model.load_state_dict({k: v for k, v in weights.items() if k in own and k not in shape}, strict=False)


def _some(keys: set[str]) -> str:
    return ", ".join(sorted(keys)[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
