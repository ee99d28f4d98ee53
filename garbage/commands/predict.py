"""The command predict."""

import argparse
import sys
from pathlib import Path

from ..prediction import predict


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("predict", help="classify images")
    parser.set_defaults(run_command=_predict)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--csv", type=Path, help="where to write the table (default: predictions.csv in the run)")
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="FOLDER_OR_IMAGE", help="images, or folders at any depth"
    )


def _predict(args: argparse.Namespace) -> int:
    if predict(args.run, args.sources, args.csv):
        return 0
    print("error: no image could be classified", file=sys.stderr)
    return 1
