"""The figures that the results are judged by: ratios, their geometric means over the grid, and the goals."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

GRID_SIZE = 11
PASSES = {"forward": "forward", "backward": "backward", "both": "forward+backward"}
AGAINST = ("eager", "compile", "clone")


def ratio(layer: dict, name: str, against: str) -> float | None:
    """How many times faster the fused module is than ``against``, or, for clone, how many clones it takes."""
    seconds, fused = layer["seconds"], layer["seconds"][name]["fused"]
    if against == "clone":
        return fused / seconds["forward"]["clone"]
    return seconds[name][against] / fused if against in seconds[name] else None


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def kinds(layers: list[dict]) -> list[tuple[str, str, str]]:
    """The (device, dtype, layout) that there are results of, in their order."""
    return list(dict.fromkeys((x["device"], x["dtype"], x["layout"]) for x in layers))


def of_kind(layers: list[dict], kind: tuple[str, str, str]) -> list[dict]:
    return [x for x in layers if (x["device"], x["dtype"], x["layout"]) == kind]


def mean_ratio(layers: list[dict], name: str, against: str) -> float | None:
    ratios = [r for x in layers if (r := ratio(x, name, against)) is not None]
    return geometric_mean(ratios) if ratios else None


@dataclass
class Row:
    """One goal: what is measured, its bound, the figure (None if there is none) and whether it is reached."""

    what: str
    sign: str
    bound: float
    figure: float | None
    unit: str
    complete: bool = True

    @property
    def reached(self) -> bool:
        return self.figure >= self.bound if self.sign == ">=" else self.figure <= self.bound


def rows(results: dict) -> list[Row]:
    """The goals on the CPU, each layout on its own, and the worst case where the goal says so."""
    layers = [x for x in results["layers"] if x["device"] == "cpu"]
    found = []
    wanted = [
        ("float32", "both", {"eager": 10, "compile": 6, "clone": 4.5}),
        ("float32", "forward", {"eager": 9, "compile": 5, "clone": 2}),
        ("bfloat16", "both", {"eager": 20, "compile": 12}),
    ]
    for dtype, name, bounds in wanted:
        for against, bound in bounds.items():
            for layout in ("nchw", "nhwc"):
                group = of_kind(layers, ("cpu", dtype, layout))
                sign, what = ("<=", "time in clones") if against == "clone" else (">=", f"speed against {against}")
                label = f"{PASSES[name]} {dtype} {layout}: {what}"
                mean = mean_ratio(group, name, against)
                found.append(Row(label, sign, bound, mean, "x", len(group) == GRID_SIZE))
    complete = len(layers) == 4 * GRID_SIZE
    for against, bound in (("eager", 3), ("compile", 1)):
        every = [r for x in layers for name in ("forward", "both") if (r := ratio(x, name, against)) is not None]
        label = f"worst single map, forward and forward+backward: speed against {against}"
        found.append(Row(label, ">=", bound, min(every, default=None), "x", complete))
    kept = [x["kept"]["fused"] for x in layers]
    found.append(Row("worst single map: kept for backward, of x", "<=", 1.1, max(kept, default=None), "x", complete))
    for network, bound in (("resnet18", 2), ("resnet50", 5)):
        tax = [100 * x["tax"]["fused"][1] for x in training(results, network)]
        label = f"{network}: CBAM tax of a training step"
        found.append(Row(label, "<=", bound, tax[0] if tax else None, " %", not results["quick"]))
    return found


def training(results: dict, network: str) -> list[dict]:
    """The training step of the network on the CPU, if it was measured."""
    key = ("cpu", network, "training")
    return [x for x in results["networks"] if (x["device"], x["network"], x["mode"]) == key]
