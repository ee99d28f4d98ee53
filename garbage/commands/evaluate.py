"""The command evaluate."""

import argparse
from pathlib import Path

from ..run.folder import home_of
from ..use.evaluate import evaluate_folder


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="measure a network on a folder of class folders")
    parser.set_defaults(run_command=_evaluate)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--out", type=Path, help="folder for the results (default: evaluation-FOLDER in the run)")
    add("folder", type=Path, metavar="FOLDER", help="class folders, or train/ and val/ with them: val/ is taken")


def _evaluate(args: argparse.Namespace) -> int:
    evaluate_folder(args.run, args.folder, args.out or home_of(args.run) / f"evaluation-{args.folder.absolute().name}")
    return 0
