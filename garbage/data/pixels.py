"""Decodes image files of any kind to RGB."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Cameras write such files; Pillow raises its own error for files with twice as many pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_rgb(path: Path, side: int) -> Image.Image:
    """Read an image as RGB, rotated according to EXIF; the first frame of an animation.

    Transparent pixels become white. A large JPEG may be decoded smaller, with sides of at least ``side`` pixels.

    Raises:
        ValueError: the path is not UTF-8, so no table or page could name the file.
        OSError, SyntaxError, ...: Pillow's errors for an unreadable file.
    """
    if not is_utf8(path):
        raise ValueError("its path is not UTF-8; rename it")
    with Image.open(path) as image:
        image.draft("RGB", (side, side))  # JPEG only: decode at a fraction of the size if that is enough
        return _to_rgb(ImageOps.exif_transpose(image))


def is_utf8(path: Path) -> bool:
    """Whether a path is UTF-8: Python decodes other bytes, as in old archives, to lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's conversion makes all values above 255 white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its 32-bit pixels (mode {image.mode}) have no known range of brightness")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
