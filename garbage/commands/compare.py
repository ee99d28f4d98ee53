"""The command compare."""

import argparse
import dataclasses
import os
from pathlib import Path

from .. import InputError
from ..run.folder import SAMPLE_SET
from ..train.compare import compare
from .arguments import add_data, add_settings, settings_from
from .train import check_run, load_images


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("compare", help="train without CBAM, with plain and with fused CBAM, side by side")
    parser.set_defaults(run_command=_compare)
    add_data(parser, default="the sample set")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", required=True, help="new or empty folder for the three runs"
    )
    add_settings(parser, "settings of all three runs")


def _compare(args: argparse.Namespace) -> int:
    if hasattr(args, "backend"):
        raise InputError("compare trains with both backends: leave out --backend")
    check_run(args.out, sample=False)
    settings = settings_from(args, args.out)
    if settings.cbam == "none":
        raise InputError("compare needs a place for CBAM: --cbam must not be none")
    images = load_images(settings, args.out)
    if settings.data is None:  # the three share one
        settings = dataclasses.replace(settings, data=os.path.abspath(args.out / SAMPLE_SET))
    compare(settings, images, args.out)
    return 0
