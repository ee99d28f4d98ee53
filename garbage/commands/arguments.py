"""Arguments that commands share."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..settings import Settings


def add_data(parser: argparse.ArgumentParser, default: str) -> None:
    """--data and --download."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data", type=Path, metavar="DIR", help=f"class folders, or train/ and val/ with them (default: {default})"
    )
    source.add_argument(
        "--download",
        action="store_true",
        help="fetch the garbage photos of mostafaabla/garbage-classification from Kaggle",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each setting but data; those that are not given leave no trace in the arguments."""
    hints = get_type_hints(Settings)
    for f in dataclasses.fields(Settings):
        if not f.metadata:
            continue
        kind = next((k for k in get_args(hints[f.name]) if k in (int, float, str)), hints[f.name])
        text = f.metadata["help"] if f.default in (None, ()) else f"{f.metadata['help']} (default: {f.default})"
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(f.default, tuple):
            options |= {"nargs": "+", "metavar": "EPOCH:VALUE"}
        else:
            options |= {"type": kind, "choices": f.metadata.get("choices")}
        parser.add_argument("--" + f.name.replace("_", "-"), **options)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among the arguments that were given, by name."""
    names = {f.name for f in dataclasses.fields(Settings) if f.metadata}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}
