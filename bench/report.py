"""python -m bench.report FILE: docs/results/benchmarks.md, its plots and data, from what ``pytest bench/`` wrote."""

import argparse
import json
from pathlib import Path

from . import plots, tables
from .ratios import kinds

DOCS = Path(__file__).parents[1] / "docs" / "results"
GPU = DOCS / "h100.json"

METHOD = """\
## How it is measured

`pytest bench/` measures and writes `runs/bench.json`; `python -m bench.report runs/bench.json` writes this file, its
plots and `benchmarks.json`. `pytest bench/ --quick` measures a subset in less than two minutes, `--data DIR` takes the
networks' images from your folder of class folders, but for *resnet18 compiled*. A part of it, chosen or cut short, goes
to `runs/bench_part.json`.

- **Compared with** *eager*: `cbam_fused.reference.CBAM`, plain PyTorch. *compile*: `torch.compile(dynamic=False)` of
  it, one graph for each feature map, dtype, layout and mode, compiled before anything is timed. *clone*: `x.clone()`,
  one read and one write of x, the least that a forward can do.
- **First correct, then timed.** The module that is timed must agree with float64 on the same feature map, in y and all
  gradients, by the rule of the tests: an error of at most twice eager's, plus what rounding cannot avoid. What fails
  has no figures here.
- **Interleaved** in one process, in rounds of one call each of eager, compile, fused, clone and copy, in an order that
  is random and new in every round; medians. Every call thus finds the caches as another one left them, as it would in a
  network. Freed memory stays with the process (glibc's `M_MMAP_MAX` 0 and `M_TRIM_THRESHOLD` 2 GB), so that nobody pays
  for new pages, which cost more than the passes over them.
- **forward** runs without gradients. **fwd+bwd** is `y = m(x); y.backward(dy)` with the gradients of x and of all
  parameters; **bwd** is its second part, so that it always follows a fresh forward.
- The data is ReLU'd, so half of it is zero and maxima are tied; reduction 16, 7x7 convolution.
- **of copy limit**: the bandwidth that fwd+bwd reaches if each pass moves no more than it must (forward: read x, write
  y; backward: read x and dy, write dx) as a part of the bandwidth of a copy. The limit is the faster
  of `x.clone()` and a copy into a tensor that is kept, in the same rounds. The bench fails where any implementation
  exceeds the limit in any pass.
- **kept**: the storages that autograd saves for the backward, each once, as a multiple of x's bytes. x itself is among
  them and counts as 1; the parameters are not counted.
- **peak**: the most that forward and backward add to the resident memory, as a multiple of x's bytes. y and dx are 2 of
  it; the gradients of the parameters are in it too, which for 8x2048x7x7 are as large as x. It is shown for maps of at
  least 1 MB, where the same measurement of `x.clone()` gives 1.
- **Networks**: torchvision's ResNet-18 with CBAM after each layer and ResNet-50 with CBAM in every block before the
  addition, which CBAM takes into its pass as relu(y + identity) (`insert_cbam(where="in_block")`, for *eager* and
  *compile* too), channels_last, float32. Training is forward, cross-entropy, backward and SGD on a batch that
  is in memory. *none* has no CBAM; *compile* compiles the CBAM modules, not the network, so that everything else is
  the same. Logits and gradients must agree with float64 first. The **CBAM tax** is the extra time over *none* in the
  same round: its median, and between which values the middle half of the rounds lies.
- **resnet18 compiled**: torch.compile has the whole network. *bare* has the operators in CBAM's place, without the
  module's checks and choices; its logits must be those of *fused* bit for bit. What *fused* takes longer than *bare* is
  what the module costs in compiled code.
- GPU rows appear where CUDA is present. Feature maps: calls in a CUDA graph, on tensors in turn that L2 does not hold,
  replayed for at least 20 ms between two events; bwd is what fwd+bwd takes longer than a forward that keeps what the
  backward needs. Networks: ten steps in a row between two events, behind others, and the host's time beside it.
  `pytest bench/` has not run on a GPU yet; what the operators take on an H100 ([cuda.md](../design/cuda.md)) was
  measured by the predecessor of `bench/gpu.py`.
- `--minutes 5` stops after so long, `--record FILE` keeps each outcome and leaves out what FILE has.
"""


def document(results: dict) -> str:
    machine, versions = results["machine"], results["versions"]
    lines = [
        "# Benchmarks",
        "",
        f"{machine['cpu']}, {machine['threads']} threads on {machine['cores']} cores, {machine['instruction set']}"
        + (f", {machine['gpu']}" if machine["gpu"] else "")
        + f"; torch {versions['torch']}, Python {versions['python']}; {results['date']}, commit {results['commit']}."
        + (" A quick run: a subset with few repetitions." if results["quick"] else ""),
        "",
        "![Speed-up and CBAM tax, on two CPU cores and on a GPU](headline.png)",
        "",
        "## Geometric means over the feature maps",
        "",
        *tables.summary(results),
        "",
        "## Whole networks",
        "",
        *(f"Batches of {x} on {results['photos']}." for x in sorted({_size(n) for n in results["networks"]})),
        "",
        *tables.networks(results),
        "",
        "## Every feature map",
        "",
        "![Time of every feature map as a multiple of a clone](benchmarks.png)",
        "",
    ]
    for kind in kinds(results["layers"]):
        lines += [f"### {' '.join(kind)}", "", *tables.layers(results, kind), ""]
    if results["refused"]:
        lines += ["## Not reported", "", *(f"- {reason}" for reason in results["refused"]), ""]
    return "\n".join(lines) + "\n" + METHOD + "\n" + tables.duration(results) + "\n"


def _size(network: dict) -> str:
    count, _, height, width = network["images"]
    return f"{count} images of {height}x{width}"


def write(results: dict, folder: Path) -> None:
    (folder / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "benchmarks.md").write_text(document(results))
    plots.headline(results, json.loads(GPU.read_text()), folder / "headline.png")
    plots.everything(results, folder / "benchmarks.png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", type=Path, metavar="FILE")
    write(json.loads(parser.parse_args().results.read_text()), DOCS)


if __name__ == "__main__":
    main()
