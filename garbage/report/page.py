"""A self-contained HTML page: embedded images and style, no scripts, no external resources."""

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

from PIL import Image

STYLE = Path(__file__).with_name("page.css")


class Cell(str):
    """A table cell as HTML, including its ``<td>``."""


class Section(NamedTuple):
    """A part of a page; body is HTML."""

    id: str
    title: str
    body: str


def document(title: str, subtitle: str, sections: list[Section]) -> str:
    """The whole page, with links to its sections; its policy forbids loading resources and running scripts."""
    links = "".join(f'<a href="#{s.id}">{escape(s.title)}</a>' for s in sections)
    parts = "".join(
        f'<section id="{s.id}" aria-labelledby="{s.id}-title">'
        f'<h2 id="{s.id}-title">{escape(s.title)}</h2>\n{s.body}</section>\n'
        for s in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<nav aria-label="Sections">{links}</nav>
<main>
{parts}</main>
</body>
</html>
"""


def tiles(values: dict[str, str]) -> str:
    """The main figures, in large type."""
    return '<dl class="tiles">' + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items()
    ) + "</dl>\n"  # fmt: skip


def table(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str, kind: str = "") -> str:
    """A table whose first column names the rows; cells are text, or HTML from bar_cell."""
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ""
    for name, *cells in rows:
        columns = "".join(cell if isinstance(cell, Cell) else f"<td>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(name)}</th>{columns}</tr>\n'
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{title}'
        f"<thead><tr>{header}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )


def bar_cell(value: float, text: str) -> str:
    """A table cell with a bar of length value in [0, 1]; no bar for NaN."""
    return Cell(f'<td class="bar" style="--value:{value:.4f}">{escape(text)}</td>') if value == value else text


def figure(source: str, alt: str, caption: str = "", kind: str = "") -> str:
    """An image with an HTML caption; source is a data URI."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><img src="{source}" alt="{escape(alt)}">{below}</figure>\n'


def svg_uri(svg: str) -> str:
    return _data_uri("image/svg+xml", svg.encode())


def jpeg_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
