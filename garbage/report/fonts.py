"""Chooses installed fonts for class names in any script."""

import unicodedata
from collections.abc import Iterable
from functools import cache

import matplotlib
import rich
from matplotlib import font_manager

BASE = tuple(matplotlib.rcParams["font.family"])
NO_LETTERS = ("Last Resort", "Adobe Blank")  # families with a box or an empty glyph for every character
INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # control and format characters, spaces
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH")
SHOWN = 8


def choose_fonts(names: Iterable[str]) -> dict[str, str]:
    """Make matplotlib fall back to installed fonts with the characters of the class names.

    If no font has them, a message names the package to install.

    Returns:
        Replacements of names with missing characters: "class 3", with the number in class_indices.json.
    """
    names = list(names)
    missing = _characters(names) - _coverage(BASE)
    families: list[str] = []
    if missing:
        families, missing = _cover(missing, _installed())
    matplotlib.rcParams["font.family"] = [*BASE, *families]
    stand_ins = {name: f"class {i}" for i, name in enumerate(names) if missing & _characters([name])}
    if stand_ins:
        name, number = next(iter(stand_ins.items()))
        shown = " ".join(sorted(missing)[:SHOWN]) + (" ..." if len(missing) > SHOWN else "")
        rich.get_console().print(
            f"no installed font has {shown}: plots and annotated images say {number!r} for {name!r}"
            f"{f' and {len(stand_ins) - 1} more' if len(stand_ins) > 1 else ''}; install {_advice(missing)}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
    return stand_ins


def runs_of_one_font(text: str) -> list[tuple[str, str, int]]:
    """A text in pieces, each with the file and index of the first font of choose_fonts that has its characters."""
    paths = [_path(family) for family in matplotlib.rcParams["font.family"]]
    pieces: list[tuple[str, str, int]] = []
    for character in text:
        path = next((p for p in paths if ord(character) in _charmap(p)), paths[0])
        if pieces and (pieces[-1][1:] == _place(path) or not _characters([character])):
            pieces[-1] = (pieces[-1][0] + character, *pieces[-1][1:])
        else:
            pieces.append((character, *_place(path)))
    return pieces


def _characters(names: Iterable[str]) -> set[str]:
    """The characters that need a glyph: no spaces, and none that only modify others."""
    return {c for c in "".join(names) if unicodedata.category(c) not in INVISIBLE and not 0xFE00 <= ord(c) <= 0xFE0F}


def _cover(missing: set[str], families: list[str]) -> tuple[list[str], set[str]]:
    """A small set of families that have the characters, the one with most first; and the missing characters."""
    coverage = {family: missing & _coverage([family]) for family in families}
    chosen = []
    while coverage and missing:
        best = max(coverage, key=lambda family: (len(coverage[family] & missing), "Sans" in family))
        if not coverage[best] & missing:
            break
        chosen.append(best)
        missing = missing - coverage.pop(best)
    return chosen, missing


def _installed() -> list[str]:
    """Every family, including fonts installed after matplotlib built its list."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            try:
                font_manager.fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError, KeyError):  # a font that matplotlib cannot read
                continue
    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return sorted(name for name in names if not name.startswith(NO_LETTERS))


def _coverage(families: Iterable[str]) -> set[str]:
    return {chr(code) for family in families for code in _charmap(_path(family))}


def _path(family: str) -> str:
    return font_manager.findfont(font_manager.FontProperties(family=[family]))


def _place(path: str) -> tuple[str, int]:
    return str(path), getattr(path, "face_index", 0)  # index in a collection, which matplotlib has from 3.11 on


@cache
def _charmap(path: str) -> frozenset[int]:
    """The code points of a font; empty for a bitmap font, which matplotlib cannot draw."""
    try:
        font = font_manager.get_font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _advice(missing: set[str]) -> str:
    packages = {_script(character) for character in missing}
    kinds = ", ".join(sorted({kind for kind, _ in packages}))
    return f"a font with {kinds} (on Debian and Ubuntu: apt install {' '.join(sorted({name for _, name in packages}))})"


def _script(character: str) -> tuple[str, str]:
    """The script of a character, and Debian's package of a font that has it."""
    word = unicodedata.name(character, "OTHER CHARACTERS").replace("-", " ").split()[0]
    if word in CJK:
        return "Chinese, Japanese and Korean", "fonts-noto-cjk"
    if unicodedata.category(character).startswith("S"):
        return "symbols", "fonts-symbola"
    return word.title(), "fonts-noto-core"
