"""The command predict."""

import argparse
import sys
from pathlib import Path

from .. import InputError
from ..run.folder import PREDICTIONS_CSV, PREDICTIONS_JSON, home_of
from ..use.predict import predict


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("predict", help="classify images")
    parser.set_defaults(run_command=_predict)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--top", type=int, default=3, metavar="K", help="classes shown of each image (default: %(default)s)")
    add("--csv", type=Path, metavar="FILE", help="where to write the table (default: predictions.csv in the run)")
    add("--json", type=Path, metavar="FILE", help="the same, and what was skipped (default: predictions.json in it)")
    add("--annotate", type=Path, metavar="DIR", help="write copies of the images with their classes into this folder")
    add("sources", type=Path, nargs="+", metavar="FOLDER_OR_IMAGE", help="images, or folders at any depth")


def _predict(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise InputError(f"--top must be at least 1, got {args.top}")
    home = home_of(args.run)
    csv_path, json_path = args.csv or home / PREDICTIONS_CSV, args.json or home / PREDICTIONS_JSON
    if predict(args.run, args.sources, csv_path, json_path, args.top, args.annotate):
        return 0
    print("error: no image could be classified", file=sys.stderr)
    return 1
