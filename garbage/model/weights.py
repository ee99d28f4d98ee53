"""Initial weights of a network."""

from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from .. import InputError
from ..data.sources import nfc

SHOWN = 5


# Names that wrapper modules add to keys, and entries that they add to the state.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
FIRST = ("module", "model")  # prefixes of every key: DataParallel, AveragedModel and trainers
COUNTERS = {"n_averaged"}


class Weights(NamedTuple):
    """A state_dict, and the classes of its last layer's rows if known."""

    state: dict[str, Tensor]
    classes: list[str] | None = None


def pretrained_weights(arch: str) -> Weights:
    """torchvision's ImageNet weights, downloaded unless they are cached.

    Raises:
        InputError: they do not exist, or cannot be downloaded.
    """
    try:
        weights = torchvision.models.get_model_weights(arch).DEFAULT
    except (ValueError, AttributeError):
        raise InputError(f"torchvision has no weights of {arch}; train without --pretrained") from None
    try:
        return Weights(weights.get_state_dict(progress=True, check_hash=True), weights.meta["categories"])
    except (OSError, RuntimeError) as error:  # no network; a damaged file
        raise InputError(
            f"the pretrained weights of {arch} cannot be downloaded ({error}); put {weights.url} "
            f"into {torch.hub.get_dir()}/checkpoints, or train without --pretrained"
        ) from error


def weights_in(path: Path, arch: str) -> Weights:
    """The state_dict in a file: by itself, or as the entry ``state_dict`` or ``model`` of a checkpoint with classes.

    Raises:
        InputError: no such file, no state_dict in it, or the checkpoint of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is not a checkpoint fails in as many ways as there are files
        raise InputError(f"{path} holds no weights: {type(error).__name__}: {error}") from error
    if isinstance(content, dict) and content.get("arch", arch) != arch:
        raise InputError(f"{path} holds weights of {content['arch']}, not of {arch}")
    classes = content.get("classes") if isinstance(content, dict) else None
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        classes = None
    for entry in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not (isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values())):
        raise InputError(f"{path} holds no state_dict: a dictionary of tensors, by itself or as the entry state_dict")
    state = unwrapped(content)
    if len(state) != len(content.keys() - COUNTERS):
        raise InputError(f"{path} holds some weights twice, with and without the name of a wrapper such as module.")
    return Weights(state, None if classes is None else [nfc(name) for name in classes])


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict without the prefixes and counters of wrappers."""
    keys = {key: [part for part in key.split(".") if part not in WRAPPERS] for key in state if key not in COUNTERS}
    while keys and all(len(parts) > 1 and parts[0] in FIRST for parts in keys.values()):
        keys = {key: parts[1:] for key, parts in keys.items()}
    return {".".join(parts): state[key] for key, parts in keys.items()}


def load_weights(model: nn.Module, weights: Weights, head: str, classes: list[str] | None = None) -> None:
    """Load a state_dict; rows of the last layer are matched by class name if both sides have names.

    New classes keep their initial rows, and so does a last layer of another width. Without names, rows are copied in
    order if their number is equal.

    Raises:
        InputError: the weights of another network, with the names that differ.
    """
    own, state = model.state_dict(), weights.state
    of_head = {key for key in own if key.startswith(f"{head}.")}
    shape = {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    # Entries of a second head in torchvision's files, and entries missing in old files.
    extra = {key for key in state.keys() - own.keys() if not key.lower().startswith("aux")}
    missing = {key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked")}
    problems = {
        "missing": missing - of_head,
        "not in the network": extra,
        "of another shape": shape - of_head,
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise InputError(f"the weights are not those of this {type(model).__name__}: {text}")
    taken = {k: v for k, v in state.items() if k in own and k not in shape}
    if classes is not None and weights.classes is not None:
        taken |= _head_by_names(own, weights, of_head, classes)
    model.load_state_dict(taken, strict=False)


def _head_by_names(
    own: dict[str, Tensor], weights: Weights, of_head: set[str], classes: list[str]
) -> dict[str, Tensor]:
    """The last layer with the weights' rows for known classes, and its own rows for the others."""
    theirs = {name: row for row, name in enumerate(weights.classes or ())}
    pairs = [(row, theirs[name]) for row, name in enumerate(classes) if name in theirs]
    rows, sources = [row for row, _ in pairs], [source for _, source in pairs]
    merged = {}
    for key in of_head & weights.state.keys():
        found = weights.state[key]
        if len(found) != len(weights.classes or ()):
            raise InputError(f"the weights name {len(weights.classes or ())} classes, but {key} has {len(found)} rows")
        merged[key] = own[key].clone()
        merged[key][rows] = found[sources].to(own[key])
    return merged


def describe_head(weights: Weights, classes: list[str]) -> str:
    """A message about the rows of the last layer: loaded and new."""
    if weights.classes is None:
        return "the weights name no classes: a last layer of as many rows is taken row by row, any other starts anew"
    known = set(weights.classes)
    new = [name for name in classes if name not in known]
    if not new:
        return "last layer: the weights know all classes"
    kept = [name for name in classes if name in known]
    return f"last layer: new are {_listed(new)}" + (f"; from the weights come {_listed(kept)}" if kept else "")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _some(keys: set[str]) -> str:
    return _listed(sorted(keys))
