"""The plots of the benchmarks page and the README, drawn from the results."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from .ratios import AGAINST, PASSES, geometric_mean, kinds, of_kind, ratio, training

COLOURS = {"eager": "#9aa0a6", "compile": "#e8a33d", "fused": "#1a73e8"}
STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


def headline(results: dict, gpu: dict, path: Path) -> None:
    """Speed-ups of forward+backward and the CBAM tax of ResNet-50, on this CPU and on the GPU of ``gpu``."""
    cores = f"{results['machine']['cores']} cores"
    groups = {
        f"{cores}\n{dtype}": [x for x in results["layers"] if (x["device"], x["dtype"]) == ("cpu", dtype)]
        for dtype in ("float32", "bfloat16")
    }
    speeds = {
        label: {a: [r for x in layers if (r := ratio(x, "both", a)) is not None] for a in AGAINST[:2]}
        for label, layers in groups.items()
    }
    name = gpu["gpu"].split()[1]
    speeds[f"{name}\nall types"] = {a: [gpu_ratio(row, a) for row in gpu["operators"]] for a in AGAINST[:2]}
    taxes = {}
    for x in training(results, "resnet50"):
        taxes[cores] = {implementation: 100 * middle for implementation, (_, middle, _) in x["tax"].items()}
    taxes[f"{name}, bfloat16"] = gpu["training step"]["tax %"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        speed, tax = figure.subplots(1, 2, width_ratios=(3, 2))
        _speed_bars(speed, speeds)
        _tax_bars(tax, taxes)
        _save(figure, path)


def gpu_ratio(row: dict, against: str) -> float:
    """The speed-up of the CUDA kernels in forward+backward over the peer's best setting."""
    times = row["microseconds"]
    peers = [taken[1] for name, taken in times.items() if name.startswith(against)]
    return min(peers) / sum(times["cuda"])


def _speed_bars(axes: Axes, speeds: dict[str, dict[str, list[float]]]) -> None:
    """A bar for each geometric mean, with the range of the feature maps."""
    for i, by_peer in enumerate(speeds.values()):
        for j, (name, ratios) in enumerate(by_peer.items()):
            if not ratios:
                continue
            place, mean = i + 0.36 * (j - 0.5), geometric_mean(ratios)
            spread = [[max(0, mean - min(ratios))], [max(0, max(ratios) - mean)]]  # of one map, rounded
            axes.bar(place, mean, 0.34, color=COLOURS[name], yerr=spread, ecolor="#555", error_kw={"linewidth": 0.8})
            axes.text(place, 0.15, f"{mean:.1f}x", ha="center", fontsize=8, fontweight="bold", color="white")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(speeds)), list(speeds))
    handles = [Patch(color=COLOURS[n]) for n in AGAINST[:2]]
    axes.legend(handles, ["against plain PyTorch", "against torch.compile"], frameon=False, fontsize=8)
    axes.set(title="CBAM, forward + backward: times faster\n(mean and range over the feature maps)", ylabel="speed-up")


def _tax_bars(axes: Axes, taxes: dict[str, dict[str, float]]) -> None:
    for i, tax in enumerate(taxes.values()):
        for j, (name, colour) in enumerate(COLOURS.items()):
            place = i + 0.27 * (j - 1)
            axes.bar(place, tax[name], 0.25, color=colour)
            axes.text(place, max(tax[name], 0) + 2, f"{tax[name]:.0f} %", ha="center", fontsize=8)
    axes.set_xticks(range(len(taxes)), list(taxes))
    handles = [Patch(color=c) for c in COLOURS.values()]
    axes.legend(handles, ["plain PyTorch", "torch.compile", "cbam_fused"], frameon=False, fontsize=8, loc="upper left")
    axes.set(title="ResNet-50 with CBAM in every block:\nextra time of a training step", ylabel="%")


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
        grid[0][0].legend(*_legend(), frameon=False, fontsize=8)
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


def _legend() -> tuple[list, list[str]]:
    """Handles and labels of the implementations and the layouts."""
    handles = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in COLOURS.values()]
    for face in ("black", "none"):
        handles.append(Line2D([], [], color="black", markerfacecolor=face, marker="o", linestyle="", markersize=4))
    return handles, [*COLOURS, "NCHW", "NHWC"]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})  # the version of matplotlib would change the file
