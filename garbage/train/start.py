"""The start of `train`: its settings, folder and images."""

import argparse
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import rich

from .. import InputError, distributed
from ..arguments import given_settings, settings_from
from ..data.folders import ImageFolder, load_folder
from ..run.folder import CONFIG, SAMPLE_SET, check_writable, read_config
from ..samples.draw import draw_sample_set
from ..settings import Settings, read_settings
from .loop import how_to_train_on

SAMPLE_RUN = Path("runs/sample")
MAY_CHANGE = ("data", "workers")  # when a run resumes: neither changes the results
SHOWN = 40  # classes


def busy_machine() -> str:
    """Advice if other programs use the cores; empty if they do not, or if the user has followed it."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores or "OMP_WAIT_POLICY" in os.environ:
        return ""
    return (
        f"the load is {load:.0f} on {cores} cores: OMP_WAIT_POLICY=passive in front of the command lets waiting "
        "threads sleep, which is faster on a busy machine"
    )


def new_settings(args: argparse.Namespace) -> Settings:
    needs_out = InputError("--out is needed with --data or --download: the folder for the results")
    if (args.data or args.download) and not args.out:
        raise needs_out
    settings = settings_from(args, args.out or SAMPLE_RUN)
    if settings.data is not None and not args.out:
        raise needs_out
    return settings


def resumed_settings(args: argparse.Namespace) -> Settings:
    """The settings of the run; options may repeat them, and name another folder with the same images.

    Raises:
        InputError: the run has no settings, or others than the options.
    """
    if args.out is not None:
        raise InputError("--out and --resume exclude each other: a run resumes in its own folder")
    theirs = settings_of(args.resume)
    given = given_settings(args)
    wanted = dataclasses.replace(theirs, **given)
    differences = [
        f"{name} is {getattr(wanted, name)}, in the run {getattr(theirs, name)}"
        for name in given
        if name not in MAY_CHANGE and getattr(wanted, name) != getattr(theirs, name)
    ]
    if differences:
        raise InputError(
            f"{args.resume} cannot be resumed with other settings: {'; '.join(differences)}. "
            f"{how_to_train_on(args.resume)}"
        )
    return wanted


def settings_of(run: Path) -> Settings:
    """The settings of a run."""
    if not (run / CONFIG).exists():
        raise InputError(f"{run} is not the folder of a run that has begun: it has no {CONFIG}")
    try:
        return Settings(**read_settings(run / CONFIG))
    except (InputError, TypeError) as error:  # TypeError: without data
        raise InputError(f"{run / CONFIG} does not hold the settings of a run: {error}") from error


def load_images(settings: Settings, run: Path, go_on: bool = False) -> ImageFolder:
    """Read the images of the settings; the sample set is first drawn into the run, unless a run resumes."""
    console = rich.get_console()
    data = run / SAMPLE_SET if settings.data is None else Path(settings.data)
    with distributed.first_alone() as first:
        if first and settings.data is None and not (go_on and data.exists()):
            run.mkdir(parents=True, exist_ok=True)
            console.print(f"drawing the sample set into {data}", soft_wrap=True, markup=False)
            draw_sample_set(data)
    images = load_folder(data, settings.image_size, settings.workers)
    for path, reason in images.unreadable.items():
        console.print(f"skipped {path}: {reason}", style="red", soft_wrap=True, markup=False)
    for text in describe(images):
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    return images


def describe(images: ImageFolder) -> Iterator[str]:
    """Lines about the classes and images, and about problems of these."""
    if images.unused:
        yield f"not used for training: {', '.join(f'{folder.name}/' for folder in images.unused)}"
    more = len(images.classes) - SHOWN
    yield f"classes: {', '.join(images.classes[:SHOWN])}" + (f" and {more} more" if more > 0 else "")
    yield f"{len(images.classes)} classes, {len(images.train)} images for training, {len(images.val)} for validation"
    if images.copies:
        copy, other = next(iter(images.copies.items()))
        of_val = len(images.copies.keys() & set(images.val.paths))
        yield (
            f"{of_val} validation images and {len(images.copies) - of_val} training images are copies of a training "
            f"image or of one of another class, as {copy} of {other}: they spoil the accuracy; `inspect` lists them all"
        )


def check_run(run: Path, sample: bool) -> None:
    """A run overwrites nothing, except that the run without arguments can be repeated."""
    check_writable(run)
    if not run.exists():
        return
    if all(p.name == SAMPLE_SET or p.name.startswith(".") for p in run.iterdir()):
        return  # also if a run was killed before it began
    if sample and run == SAMPLE_RUN and not read_config(run).get("data"):
        return
    raise InputError(f"{run} is not empty; name another folder for --out, or remove it first")
