"""Writes docs/guide/variants.md from the tables of the package: python tools/docs/generate_variants.py"""

import inspect
from dataclasses import fields
from pathlib import Path

from cbam_fused import CBAM, routing
from cbam_fused.variants.config import Switches
from cbam_fused.variants.table import VARIANTS, Variant

INTRODUCTION = """# Public CBAMs

Generated from `cbam_fused/variants/table.py` by `python tools/docs/generate_variants.py`.

`CBAM(channels, variant=NAME)` is the function of that implementation; `reduction`, `kernel_size` and single switches
may be given besides: `CBAM(64, variant="official", spatial=False)`. Its parameters have the same names and shapes for
every variant (`ca.fc1`, `ca.fc2`, `sa.conv1`, `sa.bn`; of the two maps the mean comes first), and it loads a state_dict
with the names of any variant that has these parameters, by itself or deep in a network, with `strict=True`.
`export_state_dict(model, NAME)` gives the names of a variant back. `replace_cbam(model)` finds them in a model.
[migration.md](migration.md) has the way from each.

## Loading

- Weights of Linear layers (R, C) and of 1 x 1 convolutions (R, C, 1, 1) fit each other. Where a variant has the maximum
  first, the two input channels of the spatial convolution change places.
- Some names belong to variants that differ in what a state_dict does not show: the order of the maps, the residual, the
  activation. A module built with one of these variants takes it for that one. Others take the variant that is most like
  them, and warn once. `spatial_order=` settles the order for copies that differ from their original.
- Keys without a place (a BatchNorm where the module has none, biases) are errors that name the keys, as are missing
  ones and wrong shapes. Nothing is filled in and nothing is folded.

## Variants

*kernels*: whether those of a backend serve it, as `backend_for` says; else what leaves it to the reference route.
*call*: A, `y = cbam(x)`; B, two modules return masks that the caller multiplies in.
"""

SWITCHES = """
## Switches

Every keyword of `CBAM`, `ChannelAttention` and `SpatialAttention` besides `variant`; in brackets the tutorial's value.

"""

TIES = """
## Ties

Maxima are often tied: after a ReLU, many values are 0. Every variant but timm's gives the gradient of a maximum to the
first element that reaches it; timm's `amax` gives each of them an equal part, and so does `ties="even"`, which kernels
serve with three more reads of x in the backward. `CBAM(C, variant="timm", ties="first")` spares them; its gradients
equal timm's wherever no maxima are tied.
"""


def page() -> str:
    header = ("name", "source (licence)", "r, k", "what differs from the tutorial", "names", "call", "kernels")
    lines = [INTRODUCTION, _row(header), _row(["---"] * len(header))]
    lines += [_row(_cells(row)) for row in VARIANTS.values()]
    return "\n".join(lines) + "\n" + SWITCHES + _switches() + TIES


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Variant) -> list[str]:
    changed = [f.name for f in fields(Switches) if getattr(row.switches, f.name) != getattr(Switches(), f.name)]
    switches = ", ".join(f"{name}={getattr(row.switches, name)!r}" for name in changed)
    module = CBAM(64, variant=row.name)
    own = [n for n in module.state_dict() if "num_batches" not in n]
    names = {k: v for half in ("ca", "sa") for k, v in row.names(half, alone=False).items()}
    shapes = [f"{names[n]} {_shape(n, module.state_dict()[n].shape, row)}" for n in own if not n.startswith("sa.bn")]
    shapes += [f"{names['sa.bn.weight'].removesuffix('weight')}*"] if row.switches.norm else []
    sizes = f"{row.reduction}, {row.kernel_size}" if row.switches.spatial else f"{row.reduction}"
    fused = "<br>".join(f"{backend}: {_served(backend, row)}" for backend in routing.BACKENDS)
    source = f"{row.source} ({row.licence})"
    return [f"`{row.name}`", source, sizes, switches, "<br>".join(shapes), row.call, fused]


def _served(backend: str, row: Variant) -> str:
    gates = [gate for gate in ("channel", "spatial") if getattr(row.switches, gate)]
    reason = routing.unserved_switches(backend, row.switches, *gates)
    return f"no, for {reason}" if reason else "yes"


def _shape(name: str, shape, row: Variant) -> str:
    """The shape at 64 channels with letters for its sizes."""
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
    (Path(__file__).parents[2] / "docs/guide/variants.md").write_text(page())
