"""The command line of train_example.py: the arguments and the call of each command."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import rich

from . import InputError, distributed
from .arguments import add_data, add_images, add_run, add_settings, settings_from
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
    for name, text, add_arguments, run in COMMANDS:
        command = commands.add_parser(name, help=text)
        add_arguments(command)
        command.set_defaults(run_command=run)
    return parser


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, default="the sample set")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default="runs/inspect", help="folder for the results (default: %(default)s)"
    )
    add_settings(parser, "settings of training, of which image size and augmentation matter here")


def _inspect(args: argparse.Namespace) -> int:
    check_writable(args.out)
    inspect(settings_from(args, args.out), args.out)
    return 0


def _train_arguments(parser: argparse.ArgumentParser) -> None:
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


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="folder of a run, finished or not")


def _report(args: argparse.Namespace) -> int:
    best = write_report(args.run)
    console = rich.get_console()
    console.print(best_epoch_table(best))
    console.print(f"written to {args.run / REPORT}", soft_wrap=True, markup=False)
    return 0


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add = parser.add_argument
    add("--out", type=Path, help="folder for the results (default: evaluation-FOLDER in the run)")
    add("folder", type=Path, metavar="FOLDER", help="class folders, or parts with them: uses val/, else test/")


def _evaluate(args: argparse.Namespace) -> int:
    evaluate_folder(args.run, args.folder, args.out or home_of(args.run) / f"evaluation-{args.folder.absolute().name}")
    return 0


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add = parser.add_argument
    add("--top", type=int, default=3, metavar="K", help="classes shown per image (default: %(default)s)")
    add("--csv", type=Path, metavar="FILE", help="file for the table (default: predictions.csv in the run)")
    add("--json", type=Path, metavar="FILE", help="the same, with skipped files (default: predictions.json in the run)")
    add("--annotate", type=Path, metavar="DIR", help="write copies of the images with their classes into this folder")
    add_images(parser)


def _predict(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise InputError(f"--top must be at least 1, got {args.top}")
    home = home_of(args.run)
    csv_path, json_path = args.csv or home / PREDICTIONS_CSV, args.json or home / PREDICTIONS_JSON
    if predict(args.run, args.sources, csv_path, json_path, args.top, args.annotate):
        return 0
    print("error: no image could be classified", file=sys.stderr)
    return 1


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add = parser.add_argument
    add("--out", type=Path, help="folder for the figures (default: explanations in the run)")
    add("--class", dest="target", metavar="NAME", help="target class of Grad-CAM (default: the predicted class)")
    add_images(parser)


def _explain(args: argparse.Namespace) -> int:
    if explain(args.run, args.sources, args.out or home_of(args.run) / "explanations", args.target):
        return 0
    print("error: no image could be explained", file=sys.stderr)
    return 1


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add = parser.add_argument
    add("--out", type=Path, help="folder for model.pt2 and model.onnx (default: the run)")
    add("--photo", type=Path, metavar="FILE", help="image for the check (default: a validation image of the run)")


def _export(args: argparse.Namespace) -> int:
    export(args.run, args.out or home_of(args.run), args.photo)
    return 0


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
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


COMMANDS = (
    ("inspect", "look at images before training: counts, sizes, duplicates, samples", _inspect_arguments, _inspect),
    ("train", "train a network (what runs without arguments)", _train_arguments, _train),
    ("report", "redraw the plots and report.html of a run", _report_arguments, _report),
    ("evaluate", "evaluate a network on a folder of class folders", _evaluate_arguments, _evaluate),
    ("predict", "classify images", _predict_arguments, _predict),
    ("explain", "show what the network looks at: Grad-CAM and CBAM's gates", _explain_arguments, _explain),
    ("export", "write the network as .pt2 (torch.export) and ONNX, both checked", _export_arguments, _export),
    ("compare", "train without CBAM, with plain and with fused CBAM, side by side", _compare_arguments, _compare),
)
