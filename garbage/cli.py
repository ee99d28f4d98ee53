"""The command line of train_example.py: the arguments and the call of each command."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import rich

from . import InputError, distributed
from .arguments import add_data, add_settings, settings_from
from .report.tables import best_epoch_table
from .report.write import write_report
from .run.folder import PREDICTIONS_CSV, PREDICTIONS_JSON, REPORT, SAMPLE_SET, check_writable, home_of
from .train.compare import compare
from .train.loop import train
from .train.start import SAMPLE_RUN, busy_machine, check_run, load_images, new_settings, resumed_settings
from .use.evaluate import evaluate_folder
from .use.explain import explain
from .use.export import export
from .use.inspect import inspect
from .use.predict import predict


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run_command``, which returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True)
    for add in ADD:
        add(commands)
    return parser


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("inspect", help="look at images before training: counts, sizes, duplicates, samples")
    parser.set_defaults(run_command=_inspect)
    add_data(parser, default="the sample set")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default="runs/inspect", help="folder for the results (default: %(default)s)"
    )
    add_settings(parser, "settings of training, of which image size and augmentation matter here")


def _inspect(args: argparse.Namespace) -> int:
    check_writable(args.out)
    inspect(settings_from(args, args.out), args.out)
    return 0


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("train", help="train a network (what runs without arguments)")
    parser.set_defaults(run_command=_train)
    add_data(parser, default="the sample set")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help=f"new or empty folder for the results (default: {SAMPLE_RUN}, repeatable)",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="resume a run that was stopped or killed")
    add_settings(parser, "settings")


def _train(args: argparse.Namespace) -> int:
    with distributed.joined():
        if distributed.rank():
            rich.reconfigure(quiet=True)
        run = args.resume or args.out or SAMPLE_RUN
        settings = resumed_settings(args) if args.resume else new_settings(args)
        with distributed.first_alone() as first:
            if first and not args.resume:
                check_run(run, sample=settings.data is None)
        if slow := busy_machine():
            rich.get_console().print(slow, soft_wrap=True, markup=False)
        best = train(settings, load_images(settings, run, args.resume is not None), run, go_on=args.resume is not None)
    rich.get_console().print(
        f"best epoch {best['epoch']}: val accuracy {best['val_accuracy']:.2%}, val loss {best['val_loss']:.4f}, "
        f"train accuracy {best['train_accuracy']:.2%}, train loss {best['train_loss']:.4f}\nwritten to {run}",
        soft_wrap=True,
        markup=False,
    )
    return 0


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="redraw the plots and report.html of a run")
    parser.set_defaults(run_command=_report)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, finished or not")


def _report(args: argparse.Namespace) -> int:
    best = write_report(args.run)
    console = rich.get_console()
    console.print(best_epoch_table(best))
    console.print(f"written to {args.run / REPORT}", soft_wrap=True, markup=False)
    return 0


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="evaluate a network on a folder of class folders")
    parser.set_defaults(run_command=_evaluate)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--out", type=Path, help="folder for the results (default: evaluation-FOLDER in the run)")
    add("folder", type=Path, metavar="FOLDER", help="class folders, or parts with them: uses val/, else test/")


def _evaluate(args: argparse.Namespace) -> int:
    evaluate_folder(args.run, args.folder, args.out or home_of(args.run) / f"evaluation-{args.folder.absolute().name}")
    return 0


def _add_predict(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("predict", help="classify images")
    parser.set_defaults(run_command=_predict)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--top", type=int, default=3, metavar="K", help="classes shown per image (default: %(default)s)")
    add("--csv", type=Path, metavar="FILE", help="file for the table (default: predictions.csv in the run)")
    add("--json", type=Path, metavar="FILE", help="the same, with skipped files (default: predictions.json in the run)")
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


def _add_explain(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("explain", help="show what the network looks at: Grad-CAM and CBAM's gates")
    parser.set_defaults(run_command=_explain)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--out", type=Path, help="folder for the figures (default: explanations in the run)")
    add("--class", dest="target", metavar="NAME", help="target class of Grad-CAM (default: the predicted class)")
    add("sources", type=Path, nargs="+", metavar="FOLDER_OR_IMAGE", help="images, or folders at any depth")


def _explain(args: argparse.Namespace) -> int:
    if explain(args.run, args.sources, args.out or home_of(args.run) / "explanations", args.target):
        return 0
    print("error: no image could be explained", file=sys.stderr)
    return 1


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("export", help="write the network as .pt2 (torch.export) and ONNX, both checked")
    parser.set_defaults(run_command=_export)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run, or a checkpoint file")
    add("--out", type=Path, help="folder for model.pt2 and model.onnx (default: the run)")
    add("--photo", type=Path, metavar="FILE", help="image for the check (default: a validation image of the run)")


def _export(args: argparse.Namespace) -> int:
    export(args.run, args.out or home_of(args.run), args.photo)
    return 0


def _add_compare(commands: argparse._SubParsersAction) -> None:
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


ADD = (_add_inspect, _add_train, _add_report, _add_evaluate, _add_predict, _add_explain, _add_export, _add_compare)
