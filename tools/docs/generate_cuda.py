"""The tables of docs/design/cuda.md: python tools/docs/generate_cuda.py

Compiles the CUDA kernels for five GPUs; needs nvcc, and no GPU. What one measured is in docs/results/h100.json.
"""

import json
import sys
from pathlib import Path
from statistics import geometric_mean

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "_build")]

import doc_tables  # noqa: E402
from cuda_targets import Kernel, compile_all  # noqa: E402

PEERS = ("compile", "torch.compile"), ("eager", "plain PyTorch")


def main() -> None:
    doc_tables.write("design/cuda.md", measured() | {"compiled": compiled_code(compile_all())})


def measured() -> dict[str, str]:
    """The tables h100, microseconds of each map, and ratios, of others to ours."""
    facts = json.loads((ROOT / "docs" / "results" / "h100.json").read_text())
    rows: list[list[str]] = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in facts["operators"]:
        times = row["microseconds"]
        forward, backward = times["cuda"]
        ours = forward, forward + backward
        plain = {title: times[f"{name}, forward and both"] for name, title in PEERS}
        autotuned = times.get("compile max-autotune, forward and both", plain["torch.compile"])
        plain["torch.compile"] = [min(pair) for pair in zip(plain["torch.compile"], autotuned, strict=True)]
        triton = times["triton"]
        cells = [f"{a:.0f} / {b:.0f}" for a, b in [ours, *plain.values(), (triton[0], sum(triton))]]
        shape = "x".join(map(str, row["shape"]))
        rows.append([shape, f"{row['dtype']}, {row['layout'].upper()}", f"{times['copy']:.0f}", *cells])
        for title, taken in plain.items():
            for i, what in enumerate(("forward", "forward + backward")):
                ratios.setdefault((title, what), []).append(taken[i] / ours[i])
    header = ["map", "type, layout", "copy", "CUDA", *(title for _, title in PEERS), "Triton"]
    ranges = [[*key, f"{min(r):.1f} to {max(r):.1f}", f"{geometric_mean(r):.1f}"] for key, r in ratios.items()]
    return {
        "h100": doc_tables.table(header, rows),
        "ratios": doc_tables.table(["against", "pass", "times", "mean"], ranges),
    }


def compiled_code(targets: dict[str, list[Kernel]]) -> str:
    return doc_tables.table(["kernel", "folder", "threads", *targets], kernel_rows(targets))


def kernel_rows(targets: dict[str, list[Kernel]]) -> list[list[str]]:
    rows = []
    of_any = next(iter(targets.values()))
    for name, source in sorted({(k.name, k.source.split("/")[0]) for k in of_any}):
        found = {t: [k for k in kernels if k.name == name] for t, kernels in targets.items()}
        cells = [f"{max(k.registers for k in ks)}, {min(k.blocks() for k in ks)}" for ks in found.values()]
        rows.append([f"`{name}`", source, str(next(iter(found.values()))[0].threads), *cells])
    return rows


if __name__ == "__main__":
    main()
