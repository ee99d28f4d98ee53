"""Image files of any kind as plain RGB."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Cameras make such files; Pillow refuses what has twice as many pixels, and that is an error of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_rgb(path: Path, side: int) -> Image.Image:
    """Read an image as RGB, turned as its EXIF data say; of an animation the first frame.

    What is transparent becomes white. A large JPEG may come out smaller, with at least ``side`` pixels each way.

    Raises:
        ValueError: the path is not UTF-8, so that no table or page could name the file.
        OSError, SyntaxError, ...: whatever Pillow raises for a file that it cannot read.
    """
    if not is_utf8(path):
        raise ValueError("its path is not UTF-8; rename it")
    with Image.open(path) as image:
        image.draft("RGB", (side, side))  # JPEG only: decode at a fraction of the size where that is enough
        return _to_rgb(ImageOps.exif_transpose(image))


def is_utf8(path: Path) -> bool:
    """Whether a path is text: of any other bytes, as old archives have them, Python makes lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion makes everything above 255 white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its 32-bit pixels (mode {image.mode}) have no known range of brightness")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
