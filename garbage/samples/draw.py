"""The built-in sample set: drawn pictures of household garbage, the same for the same seed.

Every picture has one object of the painters at a random place, size and angle on a random background, with clutter,
uneven light and noise, so that neither a pixel nor the mean colour determines the class.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import containers, things
from .palette import near, shade, vivid

LAYER = 200  # the side of the layer that a painter draws on
COUNTS = {"train": 250, "val": 50}
SIZE = 80
SCENE = 2 * SIZE  # drawn at twice the size: halving it smooths the edges

PAINTERS: dict[str, Callable[[ImageDraw.ImageDraw, Random], None]] = {
    "battery": containers.battery,
    "biological": things.biological,
    "brown_glass": containers.glass((112, 62, 22, 215)),
    "cardboard": containers.cardboard,
    "clothes": things.clothes,
    "green_glass": containers.glass((38, 118, 58, 205)),
    "metal": containers.metal,
    "paper": things.paper,
    "plastic": containers.plastic,
    "shoes": things.shoes,
    "trash": things.trash,
    "white_glass": containers.glass((214, 228, 230, 120)),
}


def draw_sample_set(folder: Path, seed: int = 0, counts: dict[str, int] = COUNTS) -> None:
    """Write ``folder/{train,val}/<class>/<number>.png``; the folder is replaced when all pictures are drawn.

    Args:
        folder: its parent must exist.
        seed: determines the set bit for bit (for the same versions of Pillow and NumPy).
        counts: pictures per class in each part.
    """
    jobs = [(part, name, i) for part, count in counts.items() for name in PAINTERS for i in range(count)]
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        drawn = Path(temporary) / folder.name
        for part in counts:
            for name in PAINTERS:
                (drawn / part / name).mkdir(parents=True)

        def save(job: tuple[str, str, int]) -> None:
            part, name, i = job
            picture(name, Random(f"{seed}/{part}/{name}/{i}")).save(
                drawn / part / name / f"{i:04}.png", compress_level=1
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(save, jobs))
        if folder.exists():
            shutil.rmtree(folder)
        drawn.rename(folder)


def picture(name: str, rng: Random) -> Image.Image:
    """An RGB picture of the class, SIZE x SIZE, determined by rng."""
    scene = _background(rng)
    _clutter(ImageDraw.Draw(scene), rng, rng.randint(0, 4), SCENE // 6)

    layer = Image.new("RGBA", (LAYER, LAYER))
    PAINTERS[name](ImageDraw.Draw(layer), rng)
    if rng.random() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = int(SCENE * rng.uniform(0.75, 1.0))
    stretch = rng.uniform(0.85, 1.15)
    layer = layer.resize((side, int(side * stretch)), Image.Resampling.BILINEAR)
    layer = layer.rotate(rng.triangular(-60, 60), Image.Resampling.BICUBIC, expand=True)
    room = SCENE * 0.1
    x = int((SCENE - layer.width) / 2 + rng.uniform(-room, room))
    y = int((SCENE - layer.height) / 2 + rng.uniform(-room, room))
    shadow = layer.getchannel("A").point(lambda a: a * 0.4).filter(ImageFilter.BoxBlur(3))
    scene.paste((0, 0, 0), (x + rng.randint(-8, 8), y + rng.randint(2, 9)), shadow)
    scene.paste(layer, (x, y), layer)

    _clutter(ImageDraw.Draw(scene), rng, rng.randint(0, 1), SCENE // 10)
    return _photograph(scene, rng)


def _background(rng: Random) -> Image.Image:
    ground = rng.choice([vivid(rng), (205, 200, 190), (150, 160, 170), (120, 110, 100), (70, 75, 80)])
    colour = shade(near(rng, ground, 25), rng.uniform(0.7, 1.2))
    scene = Image.new("RGB", (SCENE, SCENE), colour)
    draw = ImageDraw.Draw(scene)
    kind, step = rng.randrange(4), rng.randint(16, 44)
    if kind == 1:  # planks
        for x in range(rng.randint(-step, 0), SCENE, step):
            draw.rectangle((x, 0, x + step, SCENE), shade(colour, rng.uniform(0.8, 1.15)), shade(colour, 0.6))
    elif kind == 2:  # tiles
        for x in range(rng.randint(-step, 0), SCENE, step):
            draw.line((x, 0, x, SCENE), shade(colour, 0.7), 3)
            draw.line((0, x, SCENE, x), shade(colour, 0.7), 3)
    elif kind == 3:  # gravel
        for _ in range(90):
            x, y, r = rng.randrange(SCENE), rng.randrange(SCENE), rng.randint(2, 8)
            draw.ellipse((x - r, y - r, x + r, y + r), shade(colour, rng.uniform(0.7, 1.3)))
    return scene


def _clutter(draw: ImageDraw.ImageDraw, rng: Random, count: int, size: int) -> None:
    for _ in range(count):
        x, y = rng.randrange(SCENE), rng.randrange(SCENE)
        points = [(x + rng.randint(-size, size), y + rng.randint(-size, size)) for _ in range(3)]
        kind, colour = rng.randrange(3), vivid(rng)
        if kind == 0:
            draw.polygon(points, colour)
        elif kind == 1:
            draw.line(points, colour, rng.randint(2, 6))
        else:
            draw.ellipse((x, y, x + rng.randint(4, size), y + rng.randint(4, size)), colour)


def _photograph(scene: Image.Image, rng: Random) -> Image.Image:
    """Uneven light, a colour cast, blur and noise."""
    image = scene.resize((SIZE, SIZE), Image.Resampling.BOX)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.BoxBlur(1))
    pixels = np.asarray(image, dtype=np.float32)
    slope = np.linspace(-1, 1, SIZE, dtype=np.float32)
    light = rng.uniform(0.75, 1.15) + rng.uniform(-0.2, 0.2) * slope[:, None] + rng.uniform(-0.2, 0.2) * slope
    cast = np.array([rng.uniform(0.92, 1.08) for _ in range(3)], dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(pixels.shape, dtype=np.float32)
    pixels = pixels * light[..., None] * cast + noise * rng.uniform(2, 7)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
