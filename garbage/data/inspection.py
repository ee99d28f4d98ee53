"""Statistics of a folder of images: counts, sizes, colours, unreadable files and duplicates."""

import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich
from PIL import ImageOps
from rich.progress import track

from .classes import Labelled, find_parts
from .folders import readable_parts
from .pixels import read_rgb

FULL_SIZE = 1 << 20


class Look(NamedTuple):
    """One image: its size in pixels, a digest of size and pixels, and sums of values and squares by channel."""

    size: tuple[int, int]
    digest: str
    sums: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """Statistics of a folder.

    Attributes:
        classes: names, in the order of their indices.
        parts: the readable images of "train" and "val", with labels.
        unreadable: files with the error.
        sizes: (width, height) of each readable image, rotated according to EXIF.
        duplicates: groups of files with the same pixels.
        unused: other folders beside train/ and val/.
        mean, std: per channel, in [0, 1], of the training images as input of the network.
    """

    classes: list[str]
    parts: dict[str, Labelled]
    unreadable: dict[Path, str]
    sizes: dict[Path, tuple[int, int]]
    duplicates: list[list[Path]]
    unused: list[Path]
    mean: list[float]
    std: list[float]

    def counts(self, part: str) -> list[int]:
        """Images of each class."""
        labels = [label for _, label in self.parts[part]]
        return [labels.count(i) for i in range(len(self.classes))]

    def across(self) -> list[list[Path]]:
        """The groups of duplicates in both parts or in several classes."""
        place = {path: (part, label) for part, samples in self.parts.items() for path, label in samples}
        return [group for group in self.duplicates if len({place[path] for path in group}) > 1]


def inspect_folder(data: Path, image_size: int, workers: int) -> Inspection:
    """Read every image of a folder in full size.

    Raises:
        InputError: as load_folder.
    """
    found = find_parts(data)
    paths = [path for samples in found.images.values() for path, _ in samples]
    looks, unreadable = {}, {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda path: _look(path, image_size), paths)
        hidden = not rich.get_console().is_terminal
        for path, look in zip(
            paths, track(results, "reading images", len(paths), transient=True, disable=hidden), strict=True
        ):
            if isinstance(look, str):
                unreadable[path] = look
            else:
                looks[path] = look
    parts = readable_parts(found, unreadable)
    alike = defaultdict(list)
    for path, look in looks.items():
        alike[look.digest].append(path)
    sums = [looks[path].sums for path, _ in parts["train"]]
    mean, square = np.mean(sums, axis=0) / image_size**2
    return Inspection(
        found.classes,
        parts,
        unreadable,
        {path: look.size for path, look in looks.items()},
        [group for group in alike.values() if len(group) > 1],
        found.unused,
        mean.tolist(),
        np.sqrt(square - mean**2).tolist(),
    )


def _look(path: Path, side: int) -> Look | str:
    try:
        image = read_rgb(path, FULL_SIZE)
        digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        pixels = np.asarray(ImageOps.fit(image, (side, side)), dtype=np.float64).reshape(-1, 3) / 255
        return Look(image.size, digest, np.stack([pixels.sum(0), (pixels**2).sum(0)]))
    except Exception as error:  # a broken file makes Pillow's readers raise almost anything
        return f"{type(error).__name__}: {error}"
