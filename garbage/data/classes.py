"""Finds the class folders, and the parts of a split such as train/ and val/."""

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from .. import InputError
from .sources import SUFFIXES, images_below, is_image, nfc, subfolders

Labelled = list[tuple[Path, int]]

ROLES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
}
# "Training_Set", "test-images", "valid_data" and "val2017" are parts, too.
_SUFFIX = re.compile(r"(set|data|dataset|split|part|folder|images?|imgs?|photos?|pictures?)$")


@dataclass(frozen=True)
class Parts:
    """The labelled images of a folder.

    Attributes:
        classes: names in NFC, sorted.
        images: those of "train" and "val", or of "" if the folder is not split.
        folders: the folder of each of these.
        unused: other folders beside train/ and val/.
    """

    classes: list[str]
    images: dict[str, Labelled]
    folders: dict[str, Path]
    unused: list[Path]


def find_parts(data: Path) -> Parts:
    """The classes and images of a folder of class folders, or of its parts for training and validation.

    Parts have their usual names in any case (ROLES). With train/ and test/ but no val/, train/ is split later.

    Raises:
        InputError: the folder is missing, or its classes are missing, single, empty or differ between train and val;
            folders that may be parts or classes.
    """
    if not data.is_dir():
        raise InputError(f"{data} is not a folder")
    folders, unused = _parts(data)
    folders_of = {part: class_folders(folder) for part, folder in folders.items()}
    classes = list(next(iter(folders_of.values())))
    if "val" in folders_of and classes != list(folders_of["val"]):
        differ = sorted(set(classes) ^ set(folders_of["val"]))
        names = " and ".join(f"{folder.name}/" for folder in folders.values())
        raise InputError(f"{names} of {data} have different classes; only in one of them: {', '.join(differ)}")
    for part, folder in folders.items():
        if len(classes) < 2:
            raise InputError(f"{folder} holds {_too_few(folders_of[part])}; at least two classes are needed")
        _refuse_parts_as_classes(folder, folders_of[part])
    images = {part: labelled(of_class, classes) for part, of_class in folders_of.items()}
    for part, samples in images.items():
        need_every_class(samples, classes, folders_of[part], f"images ({', '.join(SUFFIXES)})")
    return Parts(classes, images, folders, unused)


def labelled_images(folder: Path, classes: list[str]) -> tuple[Path, Labelled]:
    """The images of the classes in a folder of class folders, or in its validation part, else in its test part.

    Returns:
        The folder that has the class folders, and its images with their labels.

    Raises:
        InputError: the folder is missing, has none of the classes, or has unknown classes.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if not set(classes) <= set(class_folders(folder)):
        roles = _by_role(folder)
        parts = [f for role in ("val", "test") for f in roles[role] if set(classes) & set(class_folders(f))]
        folder = parts[0] if parts else folder
    found = class_folders(folder)
    missing, unknown = [name for name in classes if name not in found], [name for name in found if name not in classes]
    if unknown or len(missing) == len(classes):
        differences = []
        if missing:
            differences.append(f"has no folder for {', '.join(missing)}")
        if unknown:
            differences.append(f"has {', '.join(unknown)}, which the network does not know")
        raise InputError(f"{folder} does not have the classes of the checkpoint: it {' and '.join(differences)}")
    return folder, labelled(found, classes)


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The folders of each class, by its name in NFC: names that differ only in their Unicode form are one class."""
    found = defaultdict(list)
    for place in subfolders(folder):
        found[nfc(place.name)].append(place)
    return dict(found)


def labelled(folders: dict[str, list[Path]], classes: list[str]) -> Labelled:
    """The images of each class at any depth, with the index of the class."""
    return [
        (path, label)
        for label, name in enumerate(classes)
        for place in folders.get(name, ())
        for path in images_below(place)
    ]


def need_every_class(samples: Labelled, classes: list[str], folders: dict[str, list[Path]], what: str) -> None:
    """Raise InputError unless there is a sample of each class."""
    empty = set(range(len(classes))) - {label for _, label in samples}
    if empty:
        raise InputError(f"no {what} in " + ", ".join(str(folders[classes[label]][0]) for label in sorted(empty)))


def role_of(name: str) -> str | None:
    """The part of a split that a folder's name denotes: one of ROLES, or None."""
    word = re.sub(r"[\W\d_]+", "", name.lower())
    while (shorter := _SUFFIX.sub("", word)) not in (word, ""):
        word = shorter
    return next((role for role, words in ROLES.items() if word in words), None)


def _by_role(folder: Path) -> dict[str, list[Path]]:
    roles: dict[str, list[Path]] = {role: [] for role in ROLES}
    for place in subfolders(folder):
        if role := role_of(place.name):
            roles[role].append(place)
    return roles


def _parts(data: Path) -> tuple[dict[str, Path], list[Path]]:
    """The folder with the class folders of each part, and the unused folders."""
    roles = _by_role(data)
    named = [place for places in roles.values() for place in places]
    split = {role: [p for p in places if _has_class_folders(p)] for role, places in roles.items()}
    others = [place for place in subfolders(data) if place not in named]
    if not named or (len(named) == 1 and others and not any(split.values())):
        return {"": data}, []
    names = " and ".join(f"{place.name}/" for place in named)
    for role in ("train", "val"):
        if len(split[role]) > 1:
            raise InputError(f"{data} has more than one part for {role}: {names}; move all but one elsewhere")
    if split["train"] and split["val"]:
        folders = {"train": split["train"][0], "val": split["val"][0]}
    elif split["train"] and roles["test"] and not roles["val"]:
        folders = {"": split["train"][0]}
    elif any(split.values()):
        raise InputError(f"{data} has only one of train/ and val/ with class folders, of {names}. {_how(data, named)}")
    else:
        raise InputError(f"{names} of {data} must hold class folders, as parts of a split do. {_how(data, named)}")
    used = folders.values()
    return folders, [place for place in subfolders(data) if place not in used]


def _how(data: Path, named: list[Path]) -> str:
    return (
        "It needs both, or the class folders themselves; for a class that is called so, put all class folders into "
        f"{data / 'train'} and {data / 'val'}, as in {data / 'train' / named[0].name}"
    )


def _has_class_folders(folder: Path) -> bool:
    """Whether a folder is a part of a split: it has folders, and most of its images are in them."""
    direct = _direct_images(folder)
    return bool(subfolders(folder)) and 2 * direct <= len(images_below(folder))


def _direct_images(folder: Path) -> int:
    return sum(is_image(path) for path in images_below(folder) if path.parent == folder)


def _too_few(folders: dict[str, list[Path]]) -> str:
    if not folders:
        return "no class folders"
    (name, places), *_ = folders.items()
    deeper = f" (are the classes in {places[0]}?)" if subfolders(places[0]) else ""
    return f"only the class {name!r}{deeper}"


def _refuse_parts_as_classes(folder: Path, folders: dict[str, list[Path]]) -> None:
    """Raise InputError if two "classes" have the same folders of images: they are parts, sources or years."""
    inner: dict[str, set[str]] = {}
    for name, places in folders.items():
        below = {path.relative_to(place).parts for place in places for path in images_below(place)}
        direct = sum(len(parts) == 1 for parts in below)
        if 2 * direct < len(below):
            inner[name] = {nfc(folder).lower() for parts in below for folder in parts[:-1]}
    for one, other in combinations(inner, 2):
        same = sorted(inner[one] & inner[other])
        if same:
            raise InputError(
                f"{one}/ and {other}/ of {folder} hold the same folders ({', '.join(same[:5])}), so the classes may be "
                f"these. If so, name a folder with {same[0]} and the others in it, or call the parts train/ and val/; "
                f"if {one} and {other} are the classes, move their images up into them"
            )
