"""Runs a network on image files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rich
import torch
from rich.progress import track
from torch import Tensor, nn

from ..data.folders import normalise, try_decode

BATCH = 64


def views(paths: list[Path], image_size: int) -> Iterator[list[tuple[Path, Tensor | str]]]:
    """Each path with its decoded image, uint8 (3, S, S), or its error as text.

    Lists of BATCH entries (the last one shorter), read by threads.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            yield list(zip(batch, pool.map(lambda path: try_decode(path, image_size), batch), strict=True))


def classify(model: nn.Module, image_size: int, paths: list[Path]) -> Iterator[tuple[Path, Tensor | str]]:
    """Each path with the probabilities of the classes, float32 (K,), or its error as text."""
    batches = track(
        views(paths, image_size),
        "classifying",
        total=-(-len(paths) // BATCH),
        transient=True,
        disable=not rich.get_console().is_terminal,
    )
    for batch in batches:
        images = [view for _, view in batch if isinstance(view, Tensor)]
        probabilities = iter(())
        if images:
            with torch.inference_mode():
                probabilities = iter(model(normalise(torch.stack(images))).softmax(1))
        for path, view in batch:
            yield path, view if isinstance(view, str) else next(probabilities)
