"""Train a household-garbage classifier with CBAM, and classify images with it.

python train_example.py                                     the built-in sample set, in a few minutes on two cores
python train_example.py train --data DIR --out RUN          any folder of class folders
python train_example.py predict --run RUN FOLDER_OR_IMAGE   classify images
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import rich

from garbage import InputError
from garbage.checkpoint import CONFIG, check_writable
from garbage.data import load_folder
from garbage.model import ARCHITECTURES, BACKENDS, PLACEMENTS, pretrained_weights
from garbage.prediction import predict
from garbage.samples import draw_sample_set
from garbage.training import Settings, train

SAMPLE_RUN = Path("runs/sample")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 if training diverged or nothing could be classified, 2 for bad input."""
    args = _parser().parse_args((sys.argv[1:] if argv is None else argv) or ["train"])
    try:
        return args.run_command(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace) -> int:
    run = args.out or SAMPLE_RUN
    if args.data and not args.out:
        raise InputError("--out is needed with --data: the folder for the results")
    _check_run(run, sample=args.data is None)
    if args.pretrained:
        pretrained_weights(args.arch)  # fails, if it must, before anything is written
    console = rich.get_console()
    data = args.data
    if data is None:
        data = run / "sample_set"
        run.mkdir(parents=True, exist_ok=True)
        console.print(f"drawing the sample set into {data}", soft_wrap=True, markup=False)
        draw_sample_set(data)
    image_size = args.image_size or (64 if args.data is None else 160)
    images = load_folder(data, image_size, args.workers)
    for path, reason in images.unreadable.items():
        console.print(f"left out {path}: {reason}", style="red", soft_wrap=True, markup=False)
    console.print(
        f"{len(images.classes)} classes, {len(images.train)} images for training, {len(images.val)} for validation"
    )
    settings = Settings(
        data=None if args.data is None else str(args.data),
        arch=args.arch,
        cbam=args.cbam,
        backend=args.backend,
        pretrained=args.pretrained,
        epochs=args.epochs or (10 if args.data is None else 30),
        batch_size=args.batch_size,
        lr=args.lr or (0.01 if args.pretrained else 0.05),
        image_size=image_size,
        workers=args.workers,
        seed=args.seed,
    )
    best = train(settings, images, run)
    console.print(
        f"best epoch {best['epoch']}: val accuracy {best['val_accuracy']:.2%}, val loss {best['val_loss']:.4f}, "
        f"train accuracy {best['train_accuracy']:.2%}, train loss {best['train_loss']:.4f}\nwritten to {run}",
        soft_wrap=True,
        markup=False,
    )
    return 0


def _predict(args: argparse.Namespace) -> int:
    if predict(args.run, args.sources, args.csv):
        return 0
    print("error: no image could be classified", file=sys.stderr)
    return 1


def _check_run(run: Path, sample: bool) -> None:
    """A run overwrites nothing, except that the run with no arguments may be repeated."""
    check_writable(run)
    if not run.exists() or not any(run.iterdir()):
        return
    config = run / CONFIG
    if sample and run == SAMPLE_RUN and not (config.exists() and json.loads(config.read_text())["data"]):
        return
    raise InputError(f"{run} is not empty; name another folder for --out, or remove it first")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True)

    command = commands.add_parser("train", help="train a network (the default command)")
    command.set_defaults(run_command=_train)
    add = command.add_argument
    add(
        "--data", type=Path, metavar="DIR", help="class folders, or train/ and val/ with them (default: the sample set)"
    )
    add(
        "--out",
        type=Path,
        metavar="RUN",
        help=f"new or empty folder for the results (default: {SAMPLE_RUN}, repeatable)",
    )
    add("--arch", choices=ARCHITECTURES, default="resnet18", help="default: %(default)s")
    add("--cbam", choices=PLACEMENTS, default="each_layer", help="where CBAM goes (default: %(default)s)")
    add("--backend", choices=BACKENDS, default="fused", help="CBAM's kernels, or plain PyTorch (default: %(default)s)")
    add("--pretrained", action="store_true", help="start from torchvision's ImageNet weights")
    add("--epochs", type=_at_least(1), help="default: 10 for the sample set, else 30")
    add("--batch-size", type=_at_least(2), default=32, help="default: %(default)s")
    add("--lr", type=_positive, help="peak learning rate (default: 0.05, or 0.01 with --pretrained)")
    add("--image-size", type=_at_least(32), help="side in pixels (default: 64 for the sample set, else 160)")
    add(
        "--workers",
        type=_at_least(0),
        default=os.cpu_count(),
        help="threads or processes that decode (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")

    command = commands.add_parser("predict", help="classify images")
    command.set_defaults(run_command=_predict)
    command.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    command.add_argument("--csv", type=Path, help="where to write the table (default: predictions.csv in the run)")
    command.add_argument(
        "sources", type=Path, nargs="+", metavar="FOLDER_OR_IMAGE", help="images, or folders at any depth"
    )
    return parser


def _at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    parse.__name__ = "integer"  # argparse names the type so in its message
    return parse


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
