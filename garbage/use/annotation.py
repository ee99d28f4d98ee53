"""A copy of an image with its most probable classes below it."""

from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..data.pixels import read_rgb
from ..run.folder import replacing

SIDE = 800  # pixels of the longer side at most
WIDTH = 320  # at least, for the words to fit
ROW, MARGIN = 26, 8


def annotate_image(path: Path, best: list[tuple[str, float]], target: Path) -> None:
    """Write the image with a line and a bar for each of its classes, as JPEG.

    Args:
        path: an image that can be read.
        best: class names and probabilities, the most probable first.
        target: in an existing folder.
    """
    image = read_rgb(path, SIDE)
    image.thumbnail((SIDE, SIDE))
    width = max(image.width, WIDTH)
    canvas = Image.new("RGB", (width, image.height + ROW * len(best) + 2 * MARGIN), "#171d24")
    canvas.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 16)  # comes with matplotlib
    for i, (name, probability) in enumerate(best):
        top = image.height + MARGIN + i * ROW
        length = round((width - 2 * MARGIN) * probability)
        draw.rectangle((MARGIN, top + 1, MARGIN + length, top + ROW - 3), "#14695c" if i == 0 else "#2b4a58")
        draw.text((2 * MARGIN, top + ROW / 2 - 1), name, "#ffffff", font, "lm")
        draw.text((width - 2 * MARGIN, top + ROW / 2 - 1), f"{probability:.1%}", "#ffffff", font, "rm")
    with replacing(target) as temporary:
        canvas.save(temporary, "JPEG", quality=90)
