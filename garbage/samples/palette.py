"""Colours of the drawn objects."""

import colorsys
from random import Random

Colour = tuple[int, ...]

WHITE, BLACK, SILVER, STEEL = (246, 246, 242), (34, 34, 38), (196, 200, 206), (120, 126, 134)


def vivid(rng: Random) -> Colour:
    """Any hue, well saturated, as of dyes and prints."""
    return _rgb(rng.random(), rng.uniform(0.45, 0.95), rng.uniform(0.4, 0.95))


def near(rng: Random, colour: Colour, spread: int = 18) -> Colour:
    """A colour near the given one, with the same alpha."""
    return (*(min(255, max(0, c + rng.randint(-spread, spread))) for c in colour[:3]), *colour[3:])


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (factor below 1) or lighter (above 1), with the same alpha."""
    return (*(min(255, int(c * factor)) for c in colour[:3]), *colour[3:])


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
