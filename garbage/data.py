"""Folders of class folders as training and validation images: checked, split, decoded and loaded."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rich
import torch
from PIL import ImageOps
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2

from . import InputError
from .pixels import read_rgb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which pretrained weights expect
VAL_FRACTION = 0.2
SPLIT_SEED = 0
CACHE_BYTES = 2 << 30  # a larger set is decoded again in every epoch

Labelled = list[tuple[Path, int]]


def read_size(image_size: int) -> int:
    """The side in pixels at which images are kept: a little more than the network sees, to crop from."""
    return round(image_size * 9 / 8)


def decode(path: Path, side: int) -> Tensor:
    """Read an image as uint8 RGB (3, side, side): its longer side cropped at the centre, then resized.

    Raises:
        OSError, ValueError, SyntaxError, ...: whatever Pillow raises for a file that it cannot read.
    """
    image = ImageOps.fit(read_rgb(path, side), (side, side))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def try_decode(path: Path, side: int) -> Tensor | str:
    """What decode returns, or the reason in words why it cannot."""
    try:
        return decode(path, side)
    except Exception as error:  # a broken file makes Pillow's readers raise almost anything
        return f"{type(error).__name__}: {error}"


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to float32 with ImageNet's mean and deviation, channels_last (the faster layout on CPUs)."""
    images = v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    return images.contiguous(memory_format=torch.channels_last)


class Images(Dataset):
    """Labelled images, fetched a batch at a time: uint8 (B, 3, H, W) after ``transform``, and int64 labels (B,)."""

    def __init__(self, samples: Labelled, cache: list[Tensor] | None, side: int, transform: Callable[[Tensor], Tensor]):
        self.paths = [path for path, _ in samples]
        self.labels = torch.tensor([label for _, label in samples])
        self.cache, self.side, self.transform = cache, side, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images = [decode(self.paths[i], self.side) if self.cache is None else self.cache[i] for i in indices]
        return torch.stack([self.transform(image) for image in images]), self.labels[indices]


@dataclass
class ImageFolder:
    """A folder ready for training; ``unreadable`` maps the files left out to the reason."""

    classes: list[str]
    train: Images
    val: Images
    unreadable: dict[Path, str]


def load_folder(data: Path, image_size: int, workers: int) -> ImageFolder:
    """Find, decode and split the images of a folder of class folders, or of its train/ and val/.

    Args:
        data: holds class folders, or train/ and val/ with the same class folders below each.
        image_size: side in pixels of what the network sees.
        workers: threads that decode.

    Raises:
        InputError: the folder is missing, or its classes are missing, single, empty or differ between train and val.
    """
    classes, parts = _find(data)
    side = read_size(image_size)
    images, unreadable = _decode_all([s for part in parts.values() for s in part], side, workers)
    for name, part in parts.items():
        part[:] = [(path, label) for path, label in part if path not in unreadable]
        _need_every_class(part, classes, data / name, "readable images")
    if "val" not in parts:
        parts = _split(parts[""], classes)
    transforms = {
        "train": v2.Compose([v2.RandomResizedCrop(image_size, scale=(0.65, 1.0)), v2.RandomHorizontalFlip()]),
        "val": v2.CenterCrop(image_size),
    }
    datasets = {
        name: Images(part, [images[path] for path, _ in part] if images else None, side, transforms[name])
        for name, part in parts.items()
    }
    return ImageFolder(classes, datasets["train"], datasets["val"], unreadable)


def make_loader(images: Images, batch_size: int, workers: int, shuffle_seed: int | None = None) -> DataLoader:
    """Batches of uint8 images and labels, shuffled if there is a seed.

    A last training batch of a single image is left out: BatchNorm cannot train on it.
    """
    return DataLoader(
        images,
        batch_size,
        shuffle=shuffle_seed is not None,
        drop_last=shuffle_seed is not None and len(images) % batch_size == 1,
        num_workers=workers if images.cache is None else 0,
        collate_fn=_as_fetched,
        generator=None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed),
    )


def _as_fetched(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def _find(data: Path) -> tuple[list[str], dict[str, Labelled]]:
    """Class names, and the labelled images of the parts: "train" and "val", or "" where there is no split."""
    if not data.is_dir():
        raise InputError(f"{data} is not a folder")
    names = _folders(data)
    if "train" not in names and "val" not in names:
        folders = {"": data}
    elif "train" in names and "val" in names:
        folders = {"train": data / "train", "val": data / "val"}
    else:
        raise InputError(f"{data} has only one of train/ and val/: it needs both, or the class folders themselves")
    classes_of = {part: _folders(folder) for part, folder in folders.items()}
    classes = next(iter(classes_of.values()))
    if "val" in classes_of and classes != classes_of["val"]:
        differ = sorted(set(classes) ^ set(classes_of["val"]))
        raise InputError(f"train/ and val/ of {data} have different classes; only in one of them: {', '.join(differ)}")
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise InputError(f"{next(iter(folders.values()))} holds {found}; at least two classes are needed")
    parts = {}
    for part, folder in folders.items():
        found = make_dataset(str(folder), {c: i for i, c in enumerate(classes)}, IMG_EXTENSIONS, allow_empty=True)
        parts[part] = [(Path(path), label) for path, label in found]
        _need_every_class(parts[part], classes, folder, f"images ({', '.join(IMG_EXTENSIONS)})")
    return classes, parts


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _need_every_class(samples: Labelled, classes: list[str], folder: Path, what: str) -> None:
    empty = set(range(len(classes))) - {label for _, label in samples}
    if empty:
        raise InputError(f"no {what} in " + ", ".join(str(folder / classes[label]) for label in sorted(empty)))


def _decode_all(samples: Labelled, side: int, workers: int) -> tuple[dict[Path, Tensor], dict[Path, str]]:
    """Every image by path (none at all where they would not fit in memory), and the reason of each unreadable file."""
    fits = len(samples) * 3 * side * side <= CACHE_BYTES
    paths = [path for path, _ in samples]
    images, unreadable = {}, {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda path: try_decode(path, side), paths)
        shown = track(results, "reading images", len(paths), transient=True, disable=not rich.get_console().is_terminal)
        for path, result in zip(paths, shown, strict=True):
            if isinstance(result, str):
                unreadable[path] = result
            elif fits:
                images[path] = result
    return images, unreadable


def _split(samples: Labelled, classes: list[str]) -> dict[str, Labelled]:
    """The same fraction of every class for validation, the same images each time."""
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
