"""Generated tables in the pages of docs/; the prose around them is plain Markdown."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def current(page: str) -> dict[str, str]:
    """The tables of a page by name, each between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    return dict(re.findall(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", (DOCS / page).read_text(), re.S))


def write(page: str, tables: dict[str, str]) -> None:
    """Replace the page's tables by these.

    Raises:
        ValueError: a table that the page does not have.
    """
    unknown = tables.keys() - current(page).keys()
    if unknown:
        raise ValueError(f"docs/{page} must have the tables {sorted(tables)}, but lacks {sorted(unknown)}")
    path = DOCS / page

    def replaced(match: re.Match) -> str:
        return f"<!-- table: {match[1]} -->\n{tables.get(match[1], match[2])}<!-- end -->"

    path.write_text(re.sub(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", replaced, path.read_text(), flags=re.S))


def table(header: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ["---"] * len(header), *rows))
