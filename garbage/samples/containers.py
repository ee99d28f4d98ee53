"""Painters of batteries and packaging: glass, cardboard, metal and plastic.

A painter draws one object, upright and centred, on a transparent 200 x 200 RGBA layer. Each kind has several forms,
proportions and colours; draw.py adds background, place, size, angle and light.
"""

import math
from collections.abc import Callable
from random import Random

from PIL.ImageDraw import ImageDraw

from .palette import BLACK, SILVER, STEEL, WHITE, Colour, near, shade, vivid


def _cylinder(draw: ImageDraw, box: tuple[int, int, int, int], colour: Colour) -> None:
    """An upright tube lit from the left, as vertical bands."""
    left, top, right, bottom = box
    bands = 9
    for i in range(bands):
        light = 0.62 + 0.6 * math.sin(math.pi * (0.15 + 0.8 * i / (bands - 1))) - 0.25 * i / bands
        draw.rectangle(
            (left + (right - left) * i // bands, top, left + (right - left) * (i + 1) // bands, bottom),
            shade(colour, light),
        )


def battery(draw: ImageDraw, rng: Random) -> None:
    """A round cell, a 9 V block or a car battery."""
    form, body = rng.randrange(3), near(rng, rng.choice([BLACK, (40, 60, 120), (30, 100, 60), (150, 30, 35)]))
    gold = near(rng, rng.choice([(205, 140, 60), (215, 180, 70), SILVER]))
    if form == 0:
        half, cut = rng.randint(24, 34), rng.randint(65, 90)
        draw.rectangle((90, 12, 110, 28), SILVER)
        _cylinder(draw, (100 - half, 24, 100 + half, cut), gold)
        _cylinder(draw, (100 - half, cut, 100 + half, 182), body)
        draw.rectangle((100 - half, 182, 100 + half, 187), SILVER)
        draw.line((100, cut + 14, 100, cut + 34), WHITE, 6)
        draw.line((90, cut + 24, 110, cut + 24), WHITE, 6)
        draw.line((90, 168, 110, 168), WHITE, 6)
    elif form == 1:
        half = rng.randint(40, 50)
        draw.rounded_rectangle((100 - half, 45, 100 + half, 185), 6, body)
        draw.rectangle((100 - half, 45, 100 + half, 85), gold)
        draw.rectangle((100 - half + 4, 38, 100 + half - 4, 46), BLACK)
        draw.ellipse((66, 22, 90, 40), SILVER, STEEL, 3)
        draw.rectangle((110, 22, 134, 40), STEEL, SILVER, 3)
        draw.polygon([(106, 95), (82, 138), (99, 138), (92, 175), (120, 125), (102, 125)], near(rng, (245, 210, 40)))
    else:
        draw.rectangle((20, 70, 180, 170), body)
        draw.rectangle((16, 60, 184, 84), shade(body, 1.5))
        for x, ring in ((40, (200, 40, 40)), (135, BLACK)):
            draw.rectangle((x, 42, x + 24, 60), STEEL)
            draw.rectangle((x - 3, 54, x + 27, 62), ring)
        draw.rectangle((45, 105, 155, 150), WHITE)
        draw.line((60, 127, 84, 127), (200, 40, 40), 7)
        draw.line((72, 115, 72, 139), (200, 40, 40), 7)
        draw.line((116, 127, 140, 127), BLACK, 7)


def cardboard(draw: ImageDraw, rng: Random) -> None:
    """A box, closed with tape or open with its flaps up."""
    tan = near(rng, (188, 142, 92), 16)
    dark, light = shade(tan, 0.74), shade(tan, 1.14)
    top, depth = rng.randint(70, 95), rng.randint(28, 44)
    draw.rectangle((20, top, 140, 180), tan)
    draw.polygon([(140, top), (140 + depth, top - depth), (140 + depth, 180 - depth), (140, 180)], dark)
    roof = [(20, top), (20 + depth, top - depth), (140 + depth, top - depth), (140, top)]
    if rng.random() < 0.5:
        draw.polygon(roof, light)
        tape = near(rng, (222, 205, 160), 10)
        draw.polygon([(72, top), (72 + depth, top - depth), (90 + depth, top - depth), (90, top)], tape)
        draw.rectangle((72, top, 90, top + 26), tape)
    else:
        draw.polygon(roof, shade(tan, 0.45))
        draw.polygon([(20, top), (140, top), (128, top + 30), (6, top + 30)], light, dark, 2)
        x, y = 20 + depth, top - depth
        draw.polygon([(x, y), (x + 120, y), (x + 128, y - 24), (x + 6, y - 24)], light, dark, 2)
    for x in (40, 105) if rng.random() < 0.7 else ():
        draw.line((x, 168, x, 142), dark, 5)
        draw.polygon([(x - 9, 144), (x + 9, 144), (x, 130)], dark)
    for y in range(top + 40, 180, 14):
        draw.line((20, y, 140, y), shade(tan, 0.95), 2)


def glass(colour: Colour) -> Callable[[ImageDraw, Random], None]:
    """The painter of a bottle or a jar, with or without a label, of translucent glass of that colour (RGBA)."""

    def paint(draw: ImageDraw, rng: Random) -> None:
        body = near(rng, colour, 14)
        edge = shade(body, 0.62)[:3]
        if rng.random() < 0.65:
            half, neck, shoulder = rng.randint(28, 40), rng.randint(9, 14), rng.randint(70, 95)
            left, right = 100 - half, 100 + half
            outline = [(100 - neck, 20), (100 - neck, shoulder - 22), (left, shoulder), (left, 180), (left + 6, 188)]
            outline += [(200 - x, y) for x, y in reversed(outline)]
            draw.polygon(outline, body, edge, 4)
            draw.rectangle((100 - neck - 3, 14, 100 + neck + 3, 25), edge)
            base = 178
        else:
            half, shoulder = rng.randint(44, 56), 62
            left, right, base = 100 - half, 100 + half, 170
            draw.rounded_rectangle((left, 48, right, 180), 16, body, edge, 4)
            draw.rectangle((left + 8, 26, right - 8, 50), shade(body, 0.85), edge, 4)
            draw.line((left + 8, 38, right - 8, 38), edge, 3)
        if rng.random() < 0.5:
            label = near(rng, (232, 224, 200))
            top = shoulder + rng.randint(18, 34)
            draw.rectangle((left + 3, top, right - 3, top + 45), label)
            for y in (top + 14, top + 26):
                draw.line((left + 14, y, right - 14, y), shade(label, 0.5), 4)
        draw.line((left + 13, shoulder + 10, left + 13, base - 8), (*shade(body, 1.9)[:3], 220), 6)

    return paint


def metal(draw: ImageDraw, rng: Random) -> None:
    """A drinks can or an opened food tin."""
    if rng.random() < 0.5:
        half = rng.randint(38, 46)
        left, right = 100 - half, 100 + half
        draw.ellipse((left + 4, 166, right - 4, 192), STEEL)
        _cylinder(draw, (left, 40, right, 172), rng.choice([vivid(rng), SILVER]))
        draw.ellipse((left, 160, right, 186), STEEL)
        _cylinder(draw, (left, 158, right, 170), SILVER)
        draw.polygon([(left, 44), (left + 6, 26), (right - 6, 26), (right, 44)], STEEL)
        draw.ellipse((left + 4, 14, right - 4, 40), SILVER, STEEL, 4)
        draw.ellipse((92, 20, 116, 32), STEEL, BLACK, 2)
        draw.polygon([(left + 8, 140), (right - 8, 70), (right - 8, 96), (left + 8, 164)], WHITE)
    else:
        half = rng.randint(50, 60)
        left, right = 100 - half, 100 + half
        draw.ellipse((left, 160, right, 194), STEEL)
        _cylinder(draw, (left, 72, right, 178), near(rng, SILVER, 10))
        for y in range(88, 176, 12):
            draw.arc((left, y - 12, right, y + 12), 0, 180, STEEL, 3)
        if rng.random() < 0.5:
            _cylinder(draw, (left, 98, right, 152), vivid(rng))
        draw.ellipse((left, 54, right, 90), BLACK, SILVER, 5)
        draw.ellipse((left + 10, 6, right - 4, 64), SILVER, STEEL, 5)
        draw.ellipse((left + 28, 20, right - 22, 50), None, STEEL, 3)


def plastic(draw: ImageDraw, rng: Random) -> None:
    """A drinks bottle with ribs and a screw cap, a carrier bag, or a cup with a lid and a straw."""
    form, colour = rng.randrange(3), vivid(rng)
    if form == 0:
        clear = (*near(rng, (175, 215, 235), 14), 150)
        edge, half = (105, 150, 180), rng.randint(32, 40)
        left, right = 100 - half, 100 + half
        side = [(88, 32), (88, 44), (left, 74), (left, 104), (left + 7, 116), (left, 128), (left, 182), (left + 8, 190)]
        draw.polygon(side + [(200 - x, y) for x, y in reversed(side)], clear, edge, 4)
        draw.rectangle((84, 14, 116, 34), colour)
        for x in range(88, 116, 7):
            draw.line((x, 16, x, 32), shade(colour, 0.6), 2)
        draw.rectangle((left + 1, 80, right - 1, 108), shade(colour, 1.2))
        for y in range(134, 182, 12):
            draw.line((left, y, right, y), edge, 4)
    elif form == 1:
        film = (*rng.choice([near(rng, WHITE, 8), near(rng, (190, 225, 240)), near(rng, (245, 205, 210))]), 200)
        edge = shade(film, 0.65)[:3]
        draw.polygon([(36, 66), (164, 66), (172, 186), (28, 186)], film, edge, 3)
        for x in (40, 112):
            draw.arc((x, 8, x + 48, 124), 180, 360, film[:3], 13)
            draw.rectangle((x, 60, x + 13, 74), film)
            draw.rectangle((x + 35, 60, x + 48, 74), film)
        for _ in range(5):
            x = rng.randint(45, 155)
            draw.line((x, rng.randint(76, 100), x + rng.randint(-12, 12), 180), edge, 3)
        draw.ellipse((80, 112, 120, 152), None, vivid(rng), 8)
    else:
        cup = (*near(rng, (215, 225, 232), 12), 185)
        draw.line((112, 60, 128, 4), colour, 9)
        draw.polygon([(52, 66), (148, 66), (132, 188), (68, 188)], cup, STEEL, 4)
        draw.polygon([(57, 96), (143, 96), (138, 132), (62, 132)], colour)
        draw.chord((54, 36, 146, 92), 180, 360, cup, STEEL, 4)
        draw.rectangle((46, 60, 154, 72), shade(cup, 0.9))
