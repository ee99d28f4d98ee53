"""The command train."""

import argparse
import json
import os
from pathlib import Path

import rich

from .. import InputError
from ..checkpoint import CONFIG, check_writable
from ..data import load_folder
from ..model import ARCHITECTURES, BACKENDS, PLACEMENTS, pretrained_weights
from ..samples import draw_sample_set
from ..training import Settings, train
from .arguments import at_least, positive

SAMPLE_RUN = Path("runs/sample")


def add_parser(commands: argparse._SubParsersAction) -> None:
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
    add("--epochs", type=at_least(1), help="default: 10 for the sample set, else 30")
    add("--batch-size", type=at_least(2), default=32, help="default: %(default)s")
    add("--lr", type=positive, help="peak learning rate (default: 0.05, or 0.01 with --pretrained)")
    add("--image-size", type=at_least(32), help="side in pixels (default: 64 for the sample set, else 160)")
    add(
        "--workers",
        type=at_least(0),
        default=os.cpu_count(),
        help="threads or processes that decode (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)")


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


def _check_run(run: Path, sample: bool) -> None:
    """A run overwrites nothing, except that the run with no arguments may be repeated."""
    check_writable(run)
    if not run.exists() or not any(run.iterdir()):
        return
    config = run / CONFIG
    if sample and run == SAMPLE_RUN and not (config.exists() and json.loads(config.read_text())["data"]):
        return
    raise InputError(f"{run} is not empty; name another folder for --out, or remove it first")
