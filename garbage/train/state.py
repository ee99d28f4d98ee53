"""The state of a run between two steps: a kill at any moment loses only time.

last.pt is replaced first, atomically, and has everything; the log, best.pt and the predictions of the best epoch follow
from it. A kill in between leaves them one epoch behind, and resuming writes them from last.pt.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import InputError, distributed
from ..data.folders import ImageFolder
from ..data.sources import nfc
from ..report.predictions import Predictions, write_predictions
from ..run.folder import BEST, LAST, LOG, VAL_PREDICTIONS, check_entries, remove_leftovers, replacing
from ..settings import Settings
from .learner import Learner


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: the last complete epoch.
        step: completed steps of the next epoch; lr: of its first step; sums: loss, correct answers and images so far.
        records: of the complete epochs, as in log.jsonl.
        best: the record of the best of them.
        best_probabilities: predictions in validation, (N, classes), if the last epoch is the best.
    """

    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    records: list[dict] = field(default_factory=list)
    best: dict | None = None
    best_probabilities: Tensor | None = None


def save(run: Path, settings: Settings, images: ImageFolder, learner: Learner, progress: Progress) -> None:
    """Replace last.pt, and after a complete epoch the files that follow from it.

    Raises:
        OSError: the disk is full; the files are unchanged.
    """
    last = _checkpoint(settings, images.classes, learner, progress.records[-1] if progress.records else None)
    last["resume"] = {
        "images": fingerprint(images),
        "processes": distributed.world_size(),
        "progress": vars(progress),
        "model": None if learner.ema is None else learner.model.state_dict(),
        "averaged": None if learner.ema is None else learner.ema.n_averaged,
        "optimizer": learner.optimizer.state_dict(),
        "schedule": learner.schedule.state_dict(),
        "scaler": learner.scaler.state_dict(),
    }
    _write(last, run / LAST)
    if progress.step == 0:
        write_derived(run, settings, images, learner, progress)


def write_derived(run: Path, settings: Settings, images: ImageFolder, learner: Learner, progress: Progress) -> None:
    """The log, and if the last epoch is the best one, its checkpoint and predictions."""
    with replacing(run / LOG) as path:
        path.write_text("".join(json.dumps(record) + "\n" for record in progress.records))
    if progress.best_probabilities is not None:
        files = [path.relative_to(images.folder).as_posix() for path in images.val.paths]
        predictions = Predictions(progress.epoch, images.classes, files, images.val.labels, progress.best_probabilities)
        with replacing(run / VAL_PREDICTIONS) as path:
            write_predictions(predictions, path)
        _write(_checkpoint(settings, images.classes, learner, progress.best), run / BEST)


def resume(run: Path, settings: Settings, images: ImageFolder, learner: Learner) -> Progress:
    """Load last.pt, and in the first process rewrite the files that follow from it.

    Raises:
        InputError: last.pt is damaged, of other settings, or of other images, with the differences.
    """
    try:
        last = torch.load(run / LAST, map_location=distributed.device(), weights_only=True)
        check_entries(last)
        differences = _differences(last, settings, images)
        progress = None if differences else _restore(last, learner)
    except Exception as error:  # a file that is not a checkpoint fails in as many ways as there are files
        raise InputError(f"{run / LAST} is not a checkpoint to resume from: {type(error).__name__}: {error}") from error
    if progress is None:
        raise InputError(f"{run} cannot be resumed: " + "; ".join(differences))
    if progress.best_probabilities is not None:
        progress.best_probabilities = progress.best_probabilities.cpu()
    if distributed.rank() > 0:
        progress.sums = [0.0, 0.0, 0.0]  # the saved sums are over all processes
    else:
        remove_leftovers(run)
        if progress.step == 0:
            write_derived(run, settings, images, learner, progress)
    return progress


def _differences(last: dict[str, Any], settings: Settings, images: ImageFolder) -> list[str]:
    state = last["resume"]
    differences = [
        f"{name} is {mine}, the checkpoint has {theirs}"
        for name, mine, theirs in (
            *((name, getattr(settings, name), last[name]) for name in ("arch", "cbam", "cbam_init", "image_size")),
            ("the number of processes", distributed.world_size(), state["processes"]),
        )
        if mine != theirs
    ]
    theirs = [nfc(name) for name in last["classes"]]
    for which, one, other in (("new", images.classes, theirs), ("missing", theirs, images.classes)):
        names = sorted(set(one) - set(other))
        if names:
            differences.append(f"classes that are {which}: {', '.join(names)}")
    if not differences and state["images"] != fingerprint(images):
        differences = ["the training or validation images are not those that the run began with"]
    return differences


def _restore(last: dict[str, Any], learner: Learner) -> Progress:
    state = last["resume"]
    learner.model.load_state_dict(last["state_dict"] if learner.ema is None else state["model"])
    if learner.ema is not None:
        learner.ema.module.load_state_dict(last["state_dict"])
        learner.ema.n_averaged.copy_(state["averaged"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.schedule.load_state_dict(state["schedule"])
    learner.scaler.load_state_dict(state["scaler"])
    return Progress(**state["progress"])


def fingerprint(images: ImageFolder) -> str:
    """A hash that is equal if two runs see the same files in the same order, in any folder."""
    names = [[nfc("/".join(path.parts[-2:])) for path in part.paths] for part in (images.train, images.val)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _checkpoint(settings: Settings, classes: list[str], learner: Learner, record: dict | None) -> dict[str, Any]:
    """A checkpoint with the facts to rebuild the network; torch.load(weights_only=True) reads it."""
    return {
        "arch": settings.arch,
        "cbam": settings.cbam,
        "cbam_init": settings.cbam_init,
        "classes": classes,
        "image_size": settings.image_size,
        "epoch": 0 if record is None else record["epoch"],
        "metrics": record,
        "state_dict": learner.for_use.state_dict(),
    }


def _write(checkpoint: dict, path: Path) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(checkpoint, file)
