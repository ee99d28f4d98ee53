"""The start of a run folder: settings, classes, and a description of the machine and the software."""

import importlib.metadata
import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cbam_fused import routing

from .. import distributed
from ..data.folders import ImageFolder
from ..settings import ENVIRONMENT, Settings
from .folder import CLASSES, LAST, TENSORBOARD, remove_leftovers, replacing, run_files, write_config

PACKAGES = ("torchvision", "torchmetrics", "numpy", "pillow", "cbam_fused")


def start_run(run: Path, settings: Settings, images: ImageFolder) -> None:
    """Remove the files of an earlier run, and write config.json and class_indices.json."""
    run.mkdir(parents=True, exist_ok=True)
    (run / LAST).unlink(missing_ok=True)  # first: without it the remaining files cannot be mistaken for the new run's
    remove_leftovers(run)
    for path in run_files(run):
        path.unlink()
    shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
    with replacing(run / CLASSES) as path:
        text = json.dumps(dict(enumerate(images.classes)), indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    write_config(run, asdict(settings) | {ENVIRONMENT: _describe(settings, images)})


def _describe(settings: Settings, images: ImageFolder) -> dict[str, Any]:
    """The machine and the software of the run, JSON types only."""
    device = distributed.device()
    fused = settings.backend == "fused" and settings.cbam != "none"
    return {
        "train_images": len(images.train),
        "val_images": len(images.val),
        "unreadable": [str(path) for path in images.unreadable],
        "device": str(device),
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "cbam_kernels": routing.backend_for(torch.empty(0, device=device)) if fused else "reference",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "torch": torch.__version__,  # with the version of CUDA
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # sources that are not installed
        return "not installed"
