"""The command explain."""

import argparse
import sys
from pathlib import Path

from ..run.folder import home_of
from ..use.explain import explain


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("explain", help="show what the network looks at: Grad-CAM and CBAM's gates")
    parser.set_defaults(run_command=_explain)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--out", type=Path, help="folder for the figures (default: explanations in the run)")
    add("--class", dest="target", metavar="NAME", help="what Grad-CAM asks about (default: the predicted class)")
    add("sources", type=Path, nargs="+", metavar="FOLDER_OR_IMAGE", help="images, or folders at any depth")


def _explain(args: argparse.Namespace) -> int:
    if explain(args.run, args.sources, args.out or home_of(args.run) / "explanations", args.target):
        return 0
    print("error: no image could be explained", file=sys.stderr)
    return 1
