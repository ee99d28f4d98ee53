"""The command report."""

import argparse
from pathlib import Path

import rich

from ..report.tables import best_epoch_table
from ..report.write import write_report
from ..run.folder import REPORT


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="draw the plots and report.html of a run once more")
    parser.set_defaults(run_command=_report)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, finished or not")


def _report(args: argparse.Namespace) -> int:
    best = write_report(args.run)
    console = rich.get_console()
    console.print(best_epoch_table(best))
    console.print(f"written to {args.run / REPORT}", soft_wrap=True, markup=False)
    return 0
