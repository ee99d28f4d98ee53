"""The command export."""

import argparse
from pathlib import Path

from ..run.folder import home_of
from ..use.export import export


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("export", help="write the network as .pt2 (torch.export) and ONNX, both checked")
    parser.set_defaults(run_command=_export)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--out", type=Path, help="folder for model.pt2 and model.onnx (default: the run)")
    add("--photo", type=Path, metavar="FILE", help="for the check (default: a validation image of the run)")


def _export(args: argparse.Namespace) -> int:
    export(args.run, args.out or home_of(args.run), args.photo)
    return 0
