"""The plots of the document and the README, drawn from the results alone."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from .goals import PASSES, kinds, mean_ratio, of_kind, ratio, training

COLOURS = {"eager": "#9aa0a6", "compile": "#e8a33d", "fused": "#1a73e8"}
STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


def headline(results: dict, path: Path) -> None:
    """float32 on the CPU: speed-up of forward+backward, distance to a clone, and the CBAM tax."""
    layers = [x for x in results["layers"] if (x["device"], x["dtype"]) == ("cpu", "float32")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        speed, distance, tax = figure.subplots(1, 3, width_ratios=(3, 3, 2))
        shapes = _shapes(layers)
        for against in ("eager", "compile"):
            _dots(speed, layers, shapes, against, lambda x, against=against: ratio(x, "both", against))
        speed.axvline(1, color="black", linewidth=0.8)
        speed.set(title="How many times faster fused is than\n(forward+backward, float32)", xlabel="speed-up")
        for name in COLOURS:
            _dots(distance, layers, shapes, name, lambda x, name=name: _clones(x, "both", name))
        distance.axvline(2.5, color="black", linewidth=0.8, linestyle=":")
        distance.set(
            title="Time as a multiple of x.clone()\n(dotted: the least traffic, 5 reads and writes)", xlabel="clones"
        )
        distance.set_yticklabels([])
        for axes in (speed, distance):
            _log(axes)
        speed.legend(*_legend(("eager", "compile"), layers), frameon=False, fontsize=8)
        distance.legend(*_legend(COLOURS, []), frameon=False, fontsize=8)
        _tax(tax, results)
        _save(figure, path)


def everything(results: dict, path: Path) -> None:
    """Each pass of each dtype and layout: every implementation's time as a multiple of a clone."""
    groups = kinds(results["layers"])
    shapes = _shapes(results["layers"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.2 + 2.8 * len(groups)), layout="constrained")
        grid = figure.subplots(max(1, len(groups)), len(PASSES), squeeze=False, sharex=True, sharey=True)
        for line, kind in zip(grid, groups, strict=False):
            for axes, (name, label) in zip(line, PASSES.items(), strict=True):
                for implementation in COLOURS:
                    _dots(
                        axes,
                        of_kind(results["layers"], kind),
                        shapes,
                        implementation,
                        lambda x, name=name, implementation=implementation: _clones(x, name, implementation),
                    )
                axes.set_title(f"{label}, {' '.join(kind)}", fontsize=9)
                _log(axes)
        for axes in grid[-1]:
            axes.set_xlabel("x.clone()")
        grid[0][0].legend(*_legend(COLOURS, []), frameon=False, fontsize=8)
        _save(figure, path)


def _shapes(layers: list[dict]) -> list[str]:
    return list(dict.fromkeys("x".join(map(str, x["shape"])) for x in layers))


def _clones(layer: dict, name: str, implementation: str) -> float | None:
    seconds = layer["seconds"]
    return seconds[name][implementation] / seconds["forward"]["clone"] if implementation in seconds[name] else None


def _dots(axes: Axes, layers: list[dict], shapes: list[str], name: str, value) -> None:
    """One dot for each feature map, filled for NCHW, hollow for NHWC."""
    for x in layers:
        if (v := value(x)) is not None:
            place = shapes.index("x".join(map(str, x["shape"])))
            face = COLOURS[name] if x["layout"] == "nchw" else "none"
            axes.scatter(v, place, s=26, edgecolors=COLOURS[name], facecolors=face, zorder=3)
    axes.set_yticks(range(len(shapes)), shapes)
    axes.set_ylim(len(shapes) - 0.5, -0.5)


def _log(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)


def _legend(names, layers: list[dict]) -> tuple[list, list[str]]:
    """Handles and labels, of the layouts too; with layers, the labels carry the geometric mean over them."""
    handles = [Line2D([], [], color=COLOURS[n], marker="o", linestyle="") for n in names]
    means = {n: mean_ratio(layers, "both", n) for n in names} if layers else {}
    labels = [f"{n}, mean {means[n]:.1f}x" if means.get(n) else n for n in names]
    for label, face in (("NCHW", "black"), ("NHWC", "none")):
        handles.append(Line2D([], [], color="black", markerfacecolor=face, marker="o", linestyle="", markersize=4))
        labels.append(label)
    return handles, labels


def _tax(axes: Axes, results: dict) -> None:
    """Bars with the spread of the middle half of the rounds."""
    found = [(n, x) for n in ("resnet18", "resnet50") for x in training(results, n)]
    for i, (_, x) in enumerate(found):
        for j, name in enumerate(COLOURS):
            lower, middle, upper = (100 * t for t in x["tax"][name])
            place = i + 0.27 * (j - 1)
            axes.bar(place, middle, 0.25, color=COLOURS[name], yerr=[[middle - lower], [upper - middle]], ecolor="#555")
            axes.text(place, max(upper, 0) + 0.3, f"{middle:.1f}", ha="center", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), [n.replace("resnet", "ResNet-") for n, _ in found])
    axes.set(title="CBAM tax: extra time of\na training step", ylabel="%")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})  # the version of matplotlib would change the file
