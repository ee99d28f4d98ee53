"""Painters of food, clothes, shoes, paper and residual waste.

A painter draws one object, upright and centred, on a transparent 200 x 200 RGBA layer. Each kind has several forms,
proportions and colours; draw.py adds background, place, size, angle and light.
"""

import math
from random import Random

from PIL.ImageDraw import ImageDraw

from .palette import BLACK, STEEL, WHITE, near, shade, vivid


def biological(draw: ImageDraw, rng: Random) -> None:
    """A banana, a bitten apple or a fish's bones."""
    form = rng.randrange(3)
    if form == 0:
        skin = near(rng, (232, 200, 50))
        outer = [(100 + 85 * math.cos(a), 60 + 105 * math.sin(a)) for a in (i * math.pi / 20 for i in range(1, 20))]
        inner = [(100 + 78 * math.cos(a), 45 + 65 * math.sin(a)) for a in (i * math.pi / 20 for i in range(19, 0, -1))]
        draw.polygon(outer + inner, skin, shade(skin, 0.6), 3)
        draw.line(outer[3:16], shade(skin, 0.82), 9)
        for x, y in (outer[0], outer[-1]):
            draw.ellipse((x - 9, y - 14, x + 5, y + 6), (90, 65, 30))
        for _ in range(rng.randint(2, 6)):
            x, y = rng.randint(60, 140), rng.randint(128, 150)
            draw.ellipse((x, y, x + 8, y + 5), (120, 85, 35))
    elif form == 1:
        skin = near(rng, rng.choice([(200, 40, 40), (130, 180, 50), (215, 150, 60)]))
        draw.ellipse((28, 50, 122, 180), skin)
        draw.ellipse((78, 50, 172, 180), skin)
        draw.ellipse((48, 70, 75, 115), shade(skin, 1.35))
        y = rng.randint(75, 125)
        draw.ellipse((134, y - 16, 190, y + 40), (242, 226, 176))
        draw.line((100, 62, 108, 22), (95, 65, 35), 8)
        draw.ellipse((108, 22, 152, 44), (80, 150, 60))
    else:
        bone = near(rng, (236, 228, 205), 8)
        draw.line((45, 100, 165, 100), bone, 7)
        for x in range(72, 150, 15):
            length = 42 - abs(x - 85) // 3
            draw.line((x + 8, 100 - length, x, 100, x + 8, 100 + length), bone, 6)
        draw.polygon([(10, 100), (42, 66), (62, 100), (42, 134)], near(rng, (150, 160, 165)))
        draw.ellipse((31, 86, 43, 98), WHITE, BLACK, 3)
        draw.polygon([(158, 100), (192, 66), (182, 100), (192, 134)], near(rng, (150, 160, 165)))


def clothes(draw: ImageDraw, rng: Random) -> None:
    """A T-shirt, a jumper or trousers, in any colour."""
    cloth = rng.choice([vivid(rng), vivid(rng), near(rng, BLACK), near(rng, WHITE, 8)])
    seam, other = shade(cloth, 0.6), vivid(rng)
    if rng.random() < 0.62:
        sleeve = rng.choice([82, 150])
        reach = 8 if sleeve == 82 else 14
        shirt = [(72, 24), (48, 32), (reach, sleeve), (reach + 30, sleeve + 12), (52, 78), (52, 182)]
        draw.polygon(shirt + [(200 - x, y) for x, y in reversed(shirt)], cloth, seam, 4)
        draw.chord((70, 4, 130, 46), 0, 180, shade(cloth, 0.45))
        if rng.random() < 0.5:
            for y in range(rng.randint(72, 90), 176, 26):
                draw.rectangle((55, y, 145, y + 10), other)
        elif rng.random() < 0.6:
            draw.ellipse((80, 80, 120, 120), other)
    else:
        hem = rng.choice([120, 188])
        legs = [(56, 16), (40, hem), (84, hem), (100, 76)]
        draw.polygon(legs + [(200 - x, y) for x, y in reversed(legs)], cloth, seam, 4)
        draw.rectangle((56, 14, 144, 28), seam)
        draw.line((100, 28, 100, 76), seam, 4)
        draw.arc((46, 20, 82, 56), 0, 90, seam, 4)
        draw.arc((118, 20, 154, 56), 90, 180, seam, 4)


def paper(draw: ImageDraw, rng: Random) -> None:
    """A written sheet, a newspaper or a crumpled ball."""
    form, white = rng.randrange(3), near(rng, (238, 236, 228), 10)
    ink = rng.choice([(70, 70, 78), (50, 70, 140)])
    if form == 0:
        draw.polygon([(42, 14), (132, 14), (160, 42), (160, 188), (42, 188)], white, shade(white, 0.7), 3)
        draw.polygon([(132, 14), (132, 42), (160, 42)], shade(white, 0.75))
        for y in range(58, 176, rng.choice([12, 16])):
            draw.line((54, y, rng.randint(110, 148), y), ink, 4)
    elif form == 1:
        grey = shade(white, 0.88)
        draw.rectangle((24, 18, 176, 184), grey, shade(grey, 0.6), 3)
        draw.rectangle((36, 30, 164, 50), BLACK)
        draw.rectangle((36, 62, 94, 112), shade(grey, 0.55))
        for x, y0 in ((36, 122), (104, 62)):
            for y in range(y0, 178, 9):
                draw.line((x, y, x + 58, y), shade(grey, 0.5), 3)
        draw.line((24, 101, 176, 101), shade(grey, 0.75), 3)
    else:
        rim = [
            (100 + r * math.cos(a), 100 + r * math.sin(a))
            for a, r in ((i * 0.5236, rng.randint(60, 84)) for i in range(12))
        ]
        hub = [(100 + rng.randint(-28, 28), 100 + rng.randint(-28, 28)) for _ in range(3)]
        for i in range(12):
            draw.polygon([rim[i], rim[(i + 1) % 12], hub[i % 3]], shade(white, rng.uniform(0.66, 1.05)))
            draw.polygon([rim[i], hub[i % 3], hub[(i + 1) % 3]], shade(white, rng.uniform(0.72, 1.05)))
        for i in range(12):
            draw.line((rim[i], hub[i % 3]), shade(white, 0.6), 2)


def shoes(draw: ImageDraw, rng: Random) -> None:
    """A trainer, a boot or a high heel, seen from the side."""
    form, upper = (
        rng.randrange(3),
        rng.choice([vivid(rng), near(rng, (90, 60, 40)), near(rng, BLACK, 10), near(rng, WHITE, 6)]),
    )
    edge, sole = shade(upper, 0.6), rng.choice([WHITE, (60, 50, 45)])
    if form == 0:
        top = [(18, 78), (40, 58), (72, 66), (96, 84), (132, 112), (172, 122), (188, 142), (188, 152), (18, 152)]
        draw.polygon(top, upper, edge, 4)
        draw.rounded_rectangle((14, 148, 192, 172), 8, sole, shade(sole, 0.7), 3)
        draw.polygon([(148, 118), (172, 122), (188, 142), (188, 150), (150, 150)], shade(upper, 1.3))
        for i in range(4):
            draw.line((80 + 15 * i, 72 + 11 * i, 66 + 15 * i, 90 + 11 * i), WHITE if sum(upper) < 600 else STEEL, 6)
        draw.line((30, 140, 60, 100, 92, 140), vivid(rng), 8)
    elif form == 1:
        draw.polygon([(46, 16), (108, 16), (112, 104), (160, 118), (180, 142), (180, 164), (46, 164)], upper, edge, 4)
        draw.rectangle((44, 14, 110, 30), shade(upper, 1.4))
        draw.rectangle((42, 162, 184, 176), sole)
        draw.rectangle((42, 174, 80, 188), sole)
        for y in range(46, 112, 16):
            draw.line((88, y, 110, y + 6), WHITE if sum(upper) < 600 else STEEL, 5)
    else:
        draw.polygon(
            [(20, 62), (44, 54), (82, 104), (126, 140), (178, 150), (192, 166), (110, 166), (36, 100)], upper, edge, 4
        )
        draw.polygon([(22, 72), (44, 96), (34, 184), (26, 184)], upper, edge, 3)
        draw.line((112, 167, 192, 167), sole, 7)


def trash(draw: ImageDraw, rng: Random) -> None:
    """Residual waste: a face mask, a toothbrush or a nappy."""
    form = rng.randrange(3)
    if form == 0:
        cloth = near(rng, rng.choice([(150, 200, 225), (235, 238, 240), (170, 215, 190)]), 10)
        for x in (4, 144):
            draw.ellipse((x, 66, x + 52, 134), None, WHITE, 6)
        draw.rounded_rectangle((32, 58, 168, 142), 10, cloth, shade(cloth, 0.7), 4)
        for y in (80, 100, 120):
            draw.line((36, y, 164, y), shade(cloth, 0.75), 4)
        draw.line((76, 64, 124, 64), STEEL, 5)
    elif form == 1:
        handle = vivid(rng)
        draw.rounded_rectangle((8, 92, 128, 112), 9, handle)
        draw.rounded_rectangle((30, 97, 90, 107), 4, WHITE)
        draw.polygon([(126, 95), (126, 109), (150, 106), (150, 98)], handle)
        draw.rounded_rectangle((142, 94, 194, 108), 6, handle)
        for i, x in enumerate(range(146, 190, 6)):
            draw.rectangle((x, 68, x + 4, 94), WHITE if i % 3 else shade(handle, 1.3))
    else:
        cloth = near(rng, (240, 240, 236), 8)
        side = [(28, 36), (28, 74), (70, 104), (28, 140), (28, 176)]
        draw.polygon(side + [(200 - x, y) for x, y in reversed(side)], cloth, shade(cloth, 0.7), 4)
        draw.rounded_rectangle((78, 52, 122, 160), 20, shade(cloth, 0.86))
        for x in (12, 164):
            draw.rectangle((x, 42, x + 24, 62), vivid(rng))
        for y in range(64, 156, 16):
            draw.line((84, y, 116, y), (150, 190, 225), 3)
