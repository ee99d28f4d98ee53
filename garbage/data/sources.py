"""Image files, by their names: single ones that a user names, and those in folders at any depth."""

from collections import Counter
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from .. import InputError

# What cameras and browsers write besides; a kind that this Pillow cannot read is then named with the reason.
SUFFIXES = (*IMG_EXTENSIONS, ".apng", ".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".tga")


def find_images(sources: list[Path]) -> tuple[dict[Path, Path], Counter[str]]:
    """The images among some files and in some folders.

    Returns:
        Each image once, in order, with its path relative to the folder it was found in (for a file its name); and
        how many files of each suffix were passed over in the folders. A file named by itself is always an image.
    """
    images: dict[Path, Path] = {}
    passed_over: Counter[str] = Counter()
    for source in sources:
        if not source.is_dir():
            images.setdefault(source, Path(source.name))
            continue
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            if path.suffix.lower() in SUFFIXES:
                images.setdefault(path, path.relative_to(source))
            else:
                passed_over[path.suffix.lower() or path.name] += 1
    return images, passed_over


def keep_apart(out: Path, sources: list[Path], option: str) -> None:
    """Raise InputError if files written into out might replace the sources, or be taken for sources the next time."""
    for source in sources:
        if source.is_dir():
            folder, inside = source, out.resolve().is_relative_to(source.resolve())
        else:
            folder, inside = source.parent, out.resolve() == source.resolve().parent
        if inside:
            raise InputError(f"{option} {out} lies in {folder}, where the images are; name another folder")


def output_paths(images: dict[Path, Path], out: Path, suffix: str) -> dict[Path, Path]:
    """A file of its own below out for each image: its relative path, with a number where two would be the same."""
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
