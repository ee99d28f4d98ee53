"""Plots of a folder of images before training."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.folders import decode, decode_whole
from ..data.inspection import Inspection

COLUMNS = 4  # images per class for validation, and the same number augmented


def counts_figure(inspection: Inspection) -> Figure:
    """Images of each class as bars."""
    figure = Figure(figsize=(max(6, 0.7 * len(inspection.classes)), 4.5), layout="constrained")
    axes = figure.subplots()
    bottom = torch.zeros(len(inspection.classes))
    for part in inspection.parts:
        counts = torch.tensor(inspection.counts(part), dtype=torch.float32)
        bars = axes.bar(inspection.classes, counts, bottom=bottom, label=f"{part}: {int(counts.sum())}")
        axes.bar_label(bars, label_type="center", fmt="%d", fontsize=8)
        bottom += counts
    axes.set_title("images of each class", loc="left")
    axes.set_ylabel("images")
    axes.tick_params(axis="x", rotation=45)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def sizes_figure(inspection: Inspection) -> Figure:
    """Width and height of each image."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    sizes = torch.tensor(list(inspection.sizes.values()))
    axes.scatter(sizes[:, 0], sizes[:, 1], s=9, alpha=0.3)
    axes.set(title=f"sizes of {len(sizes)} images", xlabel="width (pixels)", ylabel="height (pixels)", xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    return figure


def samples_figure(inspection: Inspection, image_size: int, transform: Callable[[Tensor], Tensor], seed: int) -> Figure:
    """A row per class: some images as in validation, then the same images augmented."""
    rows, columns = len(inspection.classes), 2 * COLUMNS
    figure = Figure(figsize=(1.3 * columns + 1, 1.35 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for label, (name, row) in enumerate(zip(inspection.classes, grid, strict=True)):
            row[0].set_ylabel(name, rotation=0, ha="right", va="center")
            paths = [path for path, other in inspection.parts["train"] if other == label]
            chosen = [paths[i] for i in torch.randperm(len(paths))[:COLUMNS].tolist()]
            for axes in row:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            for i, path in enumerate(chosen):
                row[i].imshow(decode(path, image_size).permute(1, 2, 0))
                row[COLUMNS + i].imshow(transform(decode_whole(path, round(image_size * 9 / 8))).permute(1, 2, 0))
    grid[0][0].set_title("in validation", loc="left", fontsize=10)
    grid[0][COLUMNS].set_title("in training", loc="left", fontsize=10)
    return figure
