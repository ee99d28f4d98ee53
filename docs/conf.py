"""Sphinx builds the site from docs/: make docs."""

import inspect
import re
from importlib import metadata

from sphinx.application import Sphinx

project = "cbam_fused"
author = copyright = "the authors of cbam_fused"
release = metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
nitpicky = True  # a name in the docstrings that has no entry is a warning, and so an error
OTHERS = r"(torch|nn|collections|re|argparse|typing|functools)\..*|Tensor|Callable|Iter\w+|Any|optional"
nitpick_ignore_regex = [("py:.*", OTHERS)]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "State", "Source"]

INLINE = re.compile(r"(Shape|State|Source|Raises): (.*)")
INHERITED = re.compile(r"^(?:Args|State):.*(?:\n(?!\w+:).*)*", re.M)


def complete(app: Sphinx, what: str, name: str, member: object, options: object, lines: list[str]) -> None:
    """Give a fused module the arguments and the state of its plain one, and fields of one line a paragraph each."""
    text = "\n".join(lines)
    if isinstance(member, type) and "\nArgs:" not in text:
        documented = [doc for base in member.__mro__[1:] if "\nArgs:" in (doc := inspect.getdoc(base) or "")]
        text = "\n".join([text, *INHERITED.findall(documented[0])]) if documented else text
    lines[:] = INLINE.sub(r"\n**\1**: \2", text).splitlines()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", complete, priority=400)  # before napoleon
