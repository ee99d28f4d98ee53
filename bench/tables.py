"""The results as aligned Markdown tables, for the terminal and docs/results/benchmarks.md."""

from .ratios import AGAINST, PASSES, kinds, mean_ratio, of_kind, ratio, worst


def table(header: list[str], body: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]

    def line(cells: list[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return [line(header), rule, *map(line, body)]


def speed(value: float | None) -> str:
    """A speed-up; values below 1 are marked as a loss."""
    if value is None:
        return "-"
    return f"{value:.2f}x SLOWER" if value < 1 else f"{value:.1f}x"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def summary(results: dict) -> list[str]:
    """Geometric means over the feature maps: each baseline, in each pass."""
    header = ["fused CBAM", *(f"{p} vs {a}" for p in ("fwd", "bwd", "fwd+bwd") for a in ("eager", "compile"))]
    header += ["fwd / clone", "fwd+bwd / clone", "maps", *(f"worst map vs {a}" for a in AGAINST[:2])]
    body = []
    for kind in kinds(results["layers"]):
        group = of_kind(results["layers"], kind)
        speeds = [speed(mean_ratio(group, name, against)) for name in PASSES for against in AGAINST[:2]]
        clones = [times(mean_ratio(group, name, "clone")) for name in ("forward", "both")]
        slowest = [speed(worst(group, against)) for against in AGAINST[:2]]
        body.append([" ".join(kind), *speeds, *clones, str(len(group)), *slowest])
    return table(header, body)


def layers(results: dict, kind: tuple[str, str, str]) -> list[str]:
    """One line per feature map: the fused module's times, and each ratio of the summary."""
    header = ["feature map", "fwd", "bwd", "fwd+bwd"]
    header += [f"{p} vs {a}" for p in ("fwd", "bwd", "fwd+bwd") for a in ("eager", "compile")]
    header += ["fwd / clone", "fwd+bwd / clone", "of copy limit", "kept: eager", "fused", "peak: eager", "fused"]
    body = []
    for x in of_kind(results["layers"], kind):
        seconds = x["seconds"]
        peak = x["peak"] or {}
        limit = min(seconds["forward"]["clone"], seconds["forward"]["copy"])
        body.append(
            [
                "x".join(map(str, x["shape"])),
                *(f"{1e3 * seconds[name]['fused']:.3f} ms" for name in PASSES),
                *(speed(ratio(x, name, against)) for name in PASSES for against in AGAINST[:2]),
                *(times(ratio(x, name, "clone")) for name in ("forward", "both")),
                f"{100 * 5 / 2 * limit / seconds['both']['fused']:.0f} %",
                *(times(x["kept"][name]) for name in ("eager", "fused")),
                *(times(peak.get(name)) for name in ("eager", "fused")),
            ]
        )
    return table(header, body)


def networks(results: dict) -> list[str]:
    header = ["network", "CBAM", "images/s", "CBAM tax", "middle half of the rounds"]
    body = []
    for x in results["networks"]:
        for variant, seconds in x["seconds"].items():
            lower, middle, upper = x["tax"].get(variant, (None, None, None))
            tax = "-" if middle is None else f"{100 * middle:.1f} %"
            spread = "-" if middle is None else f"{100 * lower:.1f} to {100 * upper:.1f} %"
            name = f"{x['network']} {x['mode']} {x['device']}"
            body.append([name, variant, f"{x['images'][0] / seconds:.1f}", tax, spread])
    return table(header, body)


def duration(results: dict) -> str:
    """The duration of the run, which depends on torch's cache of compiled graphs; the results do not."""
    graphs = ", ".join(f"{count} {how}" for how, count in results["graphs"].items())
    return f"The run took {results['minutes']} minutes; graphs of torch.compile: {graphs}."


def terminal(results: dict) -> list[str]:
    lines = []
    if results["layers"]:
        lines += ["Geometric means over the feature maps:", *summary(results), ""]
    if results["networks"]:
        lines += [f"Whole networks, on {results['photos']}:", *networks(results), ""]
    return [*lines, duration(results)] + [f"NOT REPORTED {reason}" for reason in results["refused"]]
