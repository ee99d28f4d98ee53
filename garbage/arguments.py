"""Options shared by commands, and the settings from them."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

from . import distributed
from .data.download import download
from .data.sources import keep_apart
from .settings import SAMPLE_RECIPE, Settings, read_settings


def add_data(parser: argparse.ArgumentParser, default: str) -> None:
    """--data and --download."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data", type=Path, metavar="DIR", help=f"class folders, or train/ and val/ with them (default: {default})"
    )
    source.add_argument(
        "--download",
        action="store_true",
        help="download the garbage photos of mostafaabla/garbage-classification from Kaggle",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """--run, of commands that use a trained network."""
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="FOLDER_OR_IMAGE", help="images, or folders at any depth"
    )


def add_settings(parser: argparse.ArgumentParser, title: str) -> None:
    """--config, and an option for each setting except data; options not given are absent from the arguments."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in TOML or JSON, named as the options below with _ for -"
    )
    group = parser.add_argument_group(title)
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
        group.add_argument("--" + f.name.replace("_", "-"), **options)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The given settings by name: those of the file, overridden by the options, with --data or --download."""
    given = read_settings(args.config) if args.config else {}
    names = {f.name for f in dataclasses.fields(Settings) if f.metadata}
    given |= {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}
    if given.get("weights"):
        given["weights"] = os.path.abspath(given["weights"])  # for resuming from another folder
    with distributed.first_alone():  # the other processes then use the cache
        data = download() if args.download else args.data or given.get("data")
    return given if data is None else given | {"data": os.path.abspath(data)}


def settings_from(args: argparse.Namespace, out: Path) -> Settings:
    """The given settings over the defaults, or over those of the sample set if that is the data.

    Raises:
        InputError: invalid settings, or an out folder that would be read as a class of the data.
    """
    given = given_settings(args)
    if "data" not in given:
        given = {"data": None} | read_settings(SAMPLE_RECIPE) | given
    settings = Settings(**given)
    if settings.data is not None:
        keep_apart(out, [Path(settings.data)], "--out")
    return settings
