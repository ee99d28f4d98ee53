"""The files and folders that count as images and classes, for all commands."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from .. import InputError

# Also formats of cameras and browsers; those that this Pillow cannot read are reported as unreadable.
SUFFIXES = (*IMG_EXTENSIONS, ".apng", ".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".tga")
# Files of operating systems, file servers and editors, other than names with a leading dot.
SYSTEM_NAMES = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir", "#recycle", "#snapshot", "__pycache__"),
}


def nfc(name: str) -> str:
    """A name in NFC: macOS writes "é" as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def counts(entry: Path) -> bool:
    """Whether a file or folder is the user's: neither hidden nor a system file."""
    return not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_NAMES


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that count, including links, by name."""
    return sorted((entry for entry in folder.iterdir() if counts(entry) and entry.is_dir()), key=_order)


def files_below(folder: Path) -> list[Path]:
    """The files that count in a folder at any depth, ordered by folder, then by name.

    Links to folders are followed, except to a parent folder. A folder reached twice is read once, under its real path
    if that is below. A broken link is a file, so that it is reported as unreadable.
    """
    entries = [e for place in _folders_below(folder) for e in place.iterdir() if counts(e)]
    return sorted((e for e in entries if e.is_file() or (e.is_symlink() and not e.exists())), key=_order)


def images_below(folder: Path) -> list[Path]:
    """The files of files_below with an image suffix."""
    return [path for path in files_below(folder) if is_image(path)]


def is_image(path: Path) -> bool:
    """Whether a file has an image suffix."""
    return path.suffix.lower() in SUFFIXES


def _folders_below(folder: Path) -> Iterator[Path]:
    places, links = [folder], []
    seen = {_identity(parent) for path in (folder.absolute(), folder.resolve()) for parent in path.parents}
    while places or links:
        place = places.pop() if places else links.pop(0)
        if _identity(place) in seen:
            continue
        seen.add(_identity(place))
        yield place
        for entry in subfolders(place):
            (links if entry.is_symlink() else places).append(entry)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _order(path: Path) -> tuple[str, str]:
    return nfc(str(path.parent)), nfc(path.name)


def find_images(sources: list[Path]) -> tuple[dict[Path, Path], Counter[str]]:
    """The images among files and in folders.

    Returns:
        Each image once, in order, with its path relative to its source folder (for a file its name); and the number of
        skipped files of each suffix in the folders. A file given directly is always an image.
    """
    images: dict[Path, Path] = {}
    passed_over: Counter[str] = Counter()
    for source in sources:
        if not source.is_dir():
            images.setdefault(source, Path(source.name))
            continue
        for path in files_below(source):
            if is_image(path):
                images.setdefault(path, path.relative_to(source))
            else:
                passed_over[path.suffix.lower() or path.name] += 1
    return images, passed_over


def keep_apart(out: Path, sources: list[Path], option: str) -> None:
    """Raise InputError if files in out could overwrite the sources, or be read as sources later."""
    for source in sources:
        if source.is_dir():
            folder, inside = source, out.resolve().is_relative_to(source.resolve())
        else:
            folder, inside = source.parent, out.resolve() == source.resolve().parent
        if inside:
            raise InputError(f"{option} {out} lies in {folder}, where the images are; name another folder")


def output_paths(images: dict[Path, Path], out: Path, suffix: str) -> dict[Path, Path]:
    """A unique file below out for each image: its relative path, with a number to resolve duplicates."""
    taken: set[Path] = set()
    targets = {}
    for path, relative in images.items():
        target, number = out / relative.with_suffix(suffix), 1
        while target in taken:
            number += 1
            target = out / relative.with_name(f"{relative.stem}_{number}{suffix}")
        taken.add(target)
        targets[path] = target
    return targets
