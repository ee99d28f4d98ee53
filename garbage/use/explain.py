"""Explains a network's prediction: Grad-CAM, and the gates of its CBAMs."""

from pathlib import Path

import rich
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import cbam_fused

from .. import InputError
from ..data.folders import normalise
from ..data.sources import find_images, keep_apart, nfc, output_paths
from ..report.fonts import choose_fonts
from ..report.grad_cam import grad_cam
from ..report.heat import MAPS, as_picture, has_cbam, overlay, spread
from ..report.plots import save_png
from ..run.folder import check_writable, load_run, replacing
from .inference import views


def explain(run: Path, sources: list[Path], out: Path, target: str | None = None) -> int:
    """Write a figure for each image: Grad-CAM, the spatial gates of the CBAMs over it, their channel gates as bars.

    Args:
        run: a finished run, or a checkpoint file.
        sources: image files, or folders of them.
        out: a folder for the figures, outside of the sources.
        target: the target class of Grad-CAM; default: the predicted class of each image.

    Returns:
        The number of explained images; unreadable images are reported and skipped.

    Raises:
        InputError: an invalid run, folder or class.
    """
    check_writable(out)
    keep_apart(out, sources, "--out")
    model, checkpoint = load_run(run)
    classes, target = checkpoint["classes"], None if target is None else nfc(target)
    if target is not None and target not in classes:
        raise InputError(f"the network does not know the class {target!r}; it knows {', '.join(classes)}")
    console = rich.get_console()
    if not has_cbam(model):
        console.print("the network has no CBAM: its Grad-CAM alone is shown")
    stand_ins = choose_fonts(classes)
    drawn = [stand_ins.get(name, name) for name in classes]
    images, _ = find_images(sources)
    targets = output_paths(images, out, ".png")
    written = 0
    for batch in views(list(images), checkpoint["image_size"]):
        for path, view in batch:
            if isinstance(view, str):
                console.print(f"skipped {path}: {view}", style="red", soft_wrap=True, markup=False)
        readable = [(path, view) for path, view in batch if isinstance(view, Tensor)]
        if not readable:
            continue
        x = normalise(torch.stack([view for _, view in readable]))
        with torch.inference_mode():
            probabilities = model(x).softmax(1)
        asked = probabilities.argmax(1) if target is None else torch.full((len(x),), classes.index(target))
        cams = grad_cam(model, x, asked)
        gates = cbam_fused.attention_maps(model, x) if has_cbam(model) else {}
        for n, (path, view) in enumerate(readable):
            likely, said = probabilities[n].max(0)
            titles = (
                f"{drawn[said]} {likely:.1%}",
                f"Grad-CAM for {drawn[asked[n]]}" + ("" if target is None else f" ({probabilities[n, asked[n]]:.1%})"),
            )
            shown = {name: gates[name] for name in spread(list(gates), MAPS)}
            of_image = {name: (m.spatial[n, 0], m.channel[n].flatten()) for name, m in shown.items()}
            targets[path].parent.mkdir(parents=True, exist_ok=True)
            with replacing(targets[path]) as temporary:
                save_png(_figure(view, cams[n], titles, of_image), temporary)
            written += 1
    if written:
        console.print(f"explained {written} images; written to {out}", soft_wrap=True, markup=False)
    return written


def _figure(view: Tensor, cam: Tensor, titles: tuple[str, str], gates: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """The image, its Grad-CAM, the spatial gate of each CBAM over it and its channel gates below."""
    columns = 2 + len(gates)
    figure = Figure(figsize=(2.5 * columns, 4.1 if gates else 3), layout="constrained")
    grid = figure.add_gridspec(2, columns, height_ratios=(1, 0.35)) if gates else figure.add_gridspec(1, columns)
    _show(figure.add_subplot(grid[0, 0]), as_picture(view), titles[0])
    _show(figure.add_subplot(grid[0, 1]), overlay(view, cam), titles[1])
    for column, (name, (spatial, channel)) in enumerate(gates.items(), 2):
        title = f"{name}\nspatial gate {spatial.min():.2f} to {spatial.max():.2f}"
        _show(figure.add_subplot(grid[0, column]), overlay(view, spatial), title)
        bars = figure.add_subplot(grid[1, column])
        bars.stairs(channel, fill=True, color="#14695c")
        bars.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
        bars.set(ylim=(0, 1), xlim=(0, len(channel)), xticks=[], yticks=[0, 0.5, 1])
        bars.set_xlabel(f"{len(channel)} channel gates, {channel.min():.2f} to {channel.max():.2f}", fontsize=8)
        bars.tick_params(labelsize=8)
    return figure


def _show(axes: Axes, picture: Image.Image, title: str) -> None:
    axes.imshow(picture)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
