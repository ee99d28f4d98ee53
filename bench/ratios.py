"""Ratios of the results, and their geometric means over the feature maps."""

import math
from collections.abc import Iterable

PASSES = {"forward": "forward", "backward": "backward", "both": "forward+backward"}
AGAINST = ("eager", "compile", "clone")


def ratio(layer: dict, name: str, against: str) -> float | None:
    """The speed-up of the fused module over ``against``; for clone, its time in clones."""
    seconds, fused = layer["seconds"], layer["seconds"][name]["fused"]
    if against == "clone":
        return fused / seconds["forward"]["clone"]
    return seconds[name][against] / fused if against in seconds[name] else None


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def kinds(layers: list[dict]) -> list[tuple[str, str, str]]:
    """The (device, dtype, layout) with results, in order."""
    return list(dict.fromkeys((x["device"], x["dtype"], x["layout"]) for x in layers))


def of_kind(layers: list[dict], kind: tuple[str, str, str]) -> list[dict]:
    return [x for x in layers if (x["device"], x["dtype"], x["layout"]) == kind]


def mean_ratio(layers: list[dict], name: str, against: str) -> float | None:
    ratios = [r for x in layers if (r := ratio(x, name, against)) is not None]
    return geometric_mean(ratios) if ratios else None


def worst(layers: list[dict], against: str) -> float | None:
    """The smallest speed-up of a single map, in forward and in forward+backward."""
    every = [r for x in layers for name in ("forward", "both") if (r := ratio(x, name, against)) is not None]
    return min(every, default=None)


def training(results: dict, network: str) -> list[dict]:
    """The training step of the network on the CPU, if it was measured."""
    key = ("cpu", network, "training")
    return [x for x in results["networks"] if (x["device"], x["network"], x["mode"]) == key]
