"""A copy of an image with its most probable classes below it."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.pixels import read_rgb
from ..report.fonts import runs_of_one_font
from ..run.folder import replacing

SIDE = 800  # pixels of the longer side at most
WIDTH = 320  # at least, to fit the text
ROW, MARGIN = 26, 8
SIZE = 16  # of letters


def annotate_image(path: Path, best: list[tuple[str, float]], target: Path) -> None:
    """Write the image with a line and a bar for each of its classes, as JPEG.

    Args:
        path: a readable image.
        best: class names and probabilities, the most probable first.
        target: in an existing folder.
    """
    image = read_rgb(path, SIDE)
    image.thumbnail((SIDE, SIDE))
    width = max(image.width, WIDTH)
    canvas = Image.new("RGB", (width, image.height + ROW * len(best) + 2 * MARGIN), "#171d24")
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (name, probability) in enumerate(best):
        top = image.height + MARGIN + i * ROW
        length = round((width - 2 * MARGIN) * probability)
        draw.rectangle((MARGIN, top + 1, MARGIN + length, top + ROW - 3), "#14695c" if i == 0 else "#2b4a58")
        middle, percent = top + ROW / 2 - 1, f"{probability:.1%}"
        _write(draw, 2 * MARGIN, middle, name)
        _write(draw, width - 2 * MARGIN - _length(percent), middle, percent)
    with replacing(target) as temporary:
        canvas.save(temporary, "JPEG", quality=90)


def _write(draw: ImageDraw.ImageDraw, x: float, middle: float, text: str) -> None:
    """Write a line of text from x on, each piece in a font with its characters."""
    for piece, path, index in runs_of_one_font(text):
        font = ImageFont.truetype(path, SIZE, index)
        draw.text((x, middle), piece, "#ffffff", font, "lm")
        x += font.getlength(piece)


def _length(text: str) -> float:
    return sum(ImageFont.truetype(path, SIZE, index).getlength(piece) for piece, path, index in runs_of_one_font(text))
