"""Folders of class folders as training and validation images: checked, split and decoded."""

import functools
import hashlib
import random
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rich
import torch
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor
from torchvision.transforms import v2

from .. import InputError
from .classes import Labelled, Parts, class_folders, find_parts, need_every_class
from .pixels import read_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as pretrained weights expect
VAL_FRACTION = 0.2
SPLIT_SEED = 0
CACHE_BYTES = 4 << 30  # a larger set is decoded again in every epoch
LONGEST = 2.0  # largest aspect ratio; longer images are cropped at the centre


def decode(path: Path, side: int) -> Tensor:
    """Read an image as uint8 RGB (3, side, side): its longer side cropped at the centre, then resized.

    Raises:
        OSError, ValueError, SyntaxError, ...: Pillow's errors for an unreadable file.
    """
    return _tensor(ImageOps.fit(read_rgb(path, side), (side, side)))


def decode_whole(path: Path, side: int) -> Tensor:
    """Read an image as uint8 RGB (3, H, W) for random crops: the shorter side at most ``side``, the same aspect ratio.

    Raises:
        as decode.
    """
    image = read_rgb(path, side)
    shorter, longer = sorted(image.size)
    scale = min(1.0, side / shorter)
    limit = round(LONGEST * shorter)
    size = tuple(max(1, round(scale * min(length, limit))) for length in image.size)
    return _tensor(ImageOps.fit(image, size) if longer > limit else image.resize(size, reducing_gap=3.0))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def try_decode(path: Path, side: int, decoder: Callable[[Path, int], Tensor] = decode) -> Tensor | str:
    """The result of the decoder, or its error as text."""
    try:
        return decoder(path, side)
    except Exception as error:  # a broken file makes Pillow's readers raise almost anything
        return f"{type(error).__name__}: {error}"


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to float32 with ImageNet's mean and deviation, channels_last (the faster layout on CPUs)."""
    mean, deviation = statistics(images.device)
    images = v2.functional.to_dtype(images, torch.float32, scale=True).sub(mean).div_(deviation)
    return images.contiguous(memory_format=torch.channels_last)


@functools.cache
@torch.inference_mode(False)  # training uses these tensors, too
def statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation, (3, 1, 1) each, copied to a device once, since the copy waits for the GPU."""
    mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return mean, deviation


class Images:
    """Labelled images of one part, in memory or read on access.

    Attributes:
        paths: the files.
        labels: int64 (N,).
        cache: the pixels, or None if they do not fit.
    """

    def __init__(
        self, samples: Labelled, cache: list[Tensor] | None, side: int, decoder: Callable[[Path, int], Tensor]
    ):
        self.paths = [path for path, _ in samples]
        self.labels = torch.tensor([label for _, label in samples])
        self.cache, self.side, self.decoder = cache, side, decoder

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, indices: list[int]) -> list[Tensor]:
        """uint8 (3, H, W) each: squares in validation, any aspect ratio in training."""
        if self.cache is not None:
            return [self.cache[i] for i in indices]
        return [self.decoder(self.paths[i], self.side) for i in indices]


@dataclass
class ImageFolder:
    """A folder ready for training.

    Attributes:
        unreadable: the skipped files, with the reason.
        unused: other folders beside train/ and val/.
        copies: validation images with the bytes of a training image, or of an image of another class, and that image.
    """

    folder: Path
    classes: list[str]
    train: Images
    val: Images
    unreadable: dict[Path, str]
    unused: list[Path] = field(default_factory=list)
    copies: dict[Path, Path] = field(default_factory=dict)


def load_folder(data: Path, image_size: int, workers: int) -> ImageFolder:
    """Find, split and decode the images of a folder of class folders, or of its train/ and val/.

    Args:
        data: a folder with class folders, or with train/ and val/ that have the same class folders.
        image_size: side of the network's images in pixels.
        workers: decoding threads.

    Raises:
        InputError: as find_parts, or a class has no readable image in a part.
    """
    found = find_parts(data)
    train_side = round(image_size * 9 / 8)  # a margin for crops
    # An unsplit folder is read as for training, since the split is over the readable images.
    jobs = {
        name: [(path, image_size, decode) if name == "val" else (path, train_side, decode_whole) for path, _ in part]
        for name, part in found.images.items()
    }
    fits = sum(LONGEST * 3 * side**2 for part in jobs.values() for _, side, _ in part) <= CACHE_BYTES
    images, unreadable = _decode_all([job for part in jobs.values() for job in part], fits, workers)
    parts = readable_parts(found, unreadable)
    if "val" not in jobs and fits:
        images |= _decode_all([(path, image_size, decode) for path, _ in parts["val"]], True, workers)[0]

    def made(name: str, side: int, decoder: Callable[[Path, int], Tensor]) -> Images:
        return Images(parts[name], [images[path] for path, _ in parts[name]] if fits else None, side, decoder)

    train, val = made("train", train_side, decode_whole), made("val", image_size, decode)
    return ImageFolder(data, found.classes, train, val, unreadable, found.unused, find_copies(parts))


def readable_parts(found: Parts, unreadable: dict[Path, str]) -> dict[str, Labelled]:
    """The readable images of find_parts, split into "train" and "val" if the folder is not.

    Raises:
        InputError: a class has no readable image in one of them.
    """
    parts = {
        name: [sample for sample in samples if sample[0] not in unreadable] for name, samples in found.images.items()
    }
    for name, samples in parts.items():
        need_every_class(samples, found.classes, class_folders(found.folders[name]), "readable images")
    return parts if "val" in parts else _split(parts[""], found.classes)


def find_copies(parts: dict[str, Labelled]) -> dict[Path, Path]:
    """Byte-identical copies of an image of the other part or of another class, validation images first.

    Such a validation image measures memorisation; such a training image has a wrong label.
    """
    places = {path: (part, label) for part in ("train", "val") for path, label in parts[part]}
    by_size = defaultdict(list)
    for path in places:
        by_size[path.stat().st_size].append(path)
    first: dict[bytes, Path] = {}
    copies = {}
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else ():
            other = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
            if places[other] != places[path]:
                copies[path] = other
    return copies


def _decode_all(jobs: list[tuple], keep: bool, workers: int) -> tuple[dict[Path, Tensor], dict[Path, str]]:
    """Every image by path, if cached, and the error of each unreadable file."""
    images, unreadable = {}, {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda job: try_decode(*job), jobs)
        shown = track(results, "reading images", len(jobs), transient=True, disable=not rich.get_console().is_terminal)
        for (path, _, _), result in zip(jobs, shown, strict=True):
            if isinstance(result, str):
                unreadable[path] = result
            elif keep:
                images[path] = result
    return images, unreadable


def _split(samples: Labelled, classes: list[str]) -> dict[str, Labelled]:
    """The same fraction of every class for validation, the same images in every run."""
    parts: dict[str, Labelled] = {"train": [], "val": []}
    for label, name in enumerate(classes):
        of_class = [sample for sample in samples if sample[1] == label]
        if len(of_class) < 2:
            raise InputError(f"class {name!r} has a single readable image; a split needs at least two")
        random.Random(f"{SPLIT_SEED}/{name}").shuffle(of_class)
        count = max(1, round(VAL_FRACTION * len(of_class)))
        parts["val"] += of_class[:count]
        parts["train"] += of_class[count:]
    return parts
