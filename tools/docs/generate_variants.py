"""The tables of docs/guide/variants.md: python tools/docs/generate_variants.py"""

import inspect
from dataclasses import fields

import doc_tables

from cbam_fused import CBAM, routing
from cbam_fused.variants.config import Switches
from cbam_fused.variants.table import VARIANTS, Variant

HEADER = ["name", "source (licence)", "r, k", "what differs from the tutorial", "names", "call", "kernels"]


def tables() -> dict[str, str]:
    rows = [_cells(row) for row in VARIANTS.values()]
    return {"variants": doc_tables.table(HEADER, rows), "switches": _switches()}


def _cells(row: Variant) -> list[str]:
    changed = [f.name for f in fields(Switches) if getattr(row.switches, f.name) != getattr(Switches(), f.name)]
    switches = ", ".join(f"{name}={getattr(row.switches, name)!r}" for name in changed)
    module = CBAM(64, variant=row.name)
    own = [n for n in module.state_dict() if "num_batches" not in n]
    names = {k: v for half in ("ca", "sa") for k, v in row.names(half, alone=False).items()}
    shapes = [f"{names[n]} {_shape(n, module.state_dict()[n].shape, row)}" for n in own if not n.startswith("sa.bn")]
    shapes += [f"{names['sa.bn.weight'].removesuffix('weight')}*"] if row.switches.norm else []
    sizes = f"{row.reduction}, {row.kernel_size}" if row.switches.spatial else f"{row.reduction}"
    source = f"{row.source} ({row.licence})"
    return [f"`{row.name}`", source, sizes, switches, "<br>".join(shapes), row.call, _served(row)]


def _served(row: Variant) -> str:
    gates = [gate for gate in ("channel", "spatial") if getattr(row.switches, gate)]
    reason = routing.unserved_switches(row.switches, *gates)
    return f"none, for {reason}" if reason else ", ".join(routing.BACKENDS)


def _shape(name: str, shape, row: Variant) -> str:
    """The shape at 64 channels, with letters for the sizes."""
    if name.startswith("sa."):
        return f"(1, {shape[1]}, k, k)" if len(shape) == 4 else "(1,)"
    sizes = {"ca.fc1": "RC", "ca.fc2": "CR"}[name[:6]] if row.switches.width != "single" else "CC"
    if len(shape) == 1:
        return f"({sizes[0]},)"
    return f"({', '.join(sizes)})" if row.linear else f"({', '.join(sizes)}, 1, 1)"


def _switches() -> str:
    text = inspect.cleandoc(Switches.__doc__).partition("Attributes:\n")[2]
    items = inspect.cleandoc(text).replace("\n    ", " ").splitlines()
    defaults = {f.name: f.default for f in fields(Switches)}
    lines = []
    for item in items:
        names, _, what = item.partition(": ")
        values = ", ".join(str(defaults[name]) for name in names.split(", "))
        lines.append(f"- `{names}` ({values}): {what}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    doc_tables.write("guide/variants.md", tables())
