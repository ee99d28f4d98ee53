"""python -m bench.report FILE: writes docs/results/benchmarks.md, plots and data from a run of ``pytest bench/``."""

import argparse
import json
from pathlib import Path

from . import plots, tables
from .ratios import kinds

DOCS = Path(__file__).parents[1] / "docs" / "results"
GPU = DOCS / "h100.json"

METHOD = """\
## Method

`pytest bench/` measures and writes `runs/bench.json`; `python -m bench.report runs/bench.json` writes this page, its
plots and `benchmarks.json`. `pytest bench/ --quick` measures a subset in less than two minutes. `--data DIR` uses
images from your folder of class folders for the networks, except for *resnet18 compiled*. A partial or interrupted run
writes `runs/bench_part.json`.

- **Baselines.** *eager*: `cbam_fused.reference.CBAM`, plain PyTorch. *compile*: `torch.compile(dynamic=False)` of it,
  one graph for each feature map, dtype, layout and mode, compiled before timing. *clone*: `x.clone()`, one read and one
  write of x, the minimum of a forward.
- **Checked before timing.** The timed module must agree with float64 on the same feature map, in y and all gradients,
  with the tolerance of the tests: an error of at most twice eager's plus unavoidable rounding. An implementation that
  fails has no figures here.
- **Interleaved.** One process runs rounds of one call each of eager, compile, fused, clone and copy, in a new random
  order per round; the figures are medians. Every call thus finds the caches as another call left them, as in a network.
  Freed memory stays with the process (glibc's `M_MMAP_MAX` 0 and `M_TRIM_THRESHOLD` 2 GB), since new pages cost more
  than the passes over them.
- **forward** runs without gradients. **fwd+bwd** is `y = m(x); y.backward(dy)` with the gradients of x and of all
  parameters. **bwd** is its second part and always follows a new forward.
- The data are ReLU outputs: half of them are zero, and maxima are tied. Reduction 16, 7x7 convolution.
- **of copy limit**: the bandwidth of fwd+bwd with the minimum traffic of each pass (forward: read x, write y; backward:
  read x and dy, write dx), relative to the bandwidth of a copy. The limit is the faster of `x.clone()` and a copy into
  a preallocated tensor, in the same rounds. The benchmark fails if an implementation exceeds the limit in any pass.
- **kept**: the storages that autograd saves for the backward, each once, as a multiple of x's bytes. x itself counts as
  1; the parameters do not count.
- **peak**: the increase of resident memory in forward and backward, as a multiple of x's bytes. It includes y and dx
  (2) and the gradients of the parameters, which for 8x2048x7x7 are as large as x. It is shown for maps of at least 1
  MB, for which the same measurement of `x.clone()` returns 1.
- **Networks**: torchvision's ResNet-18 with CBAM after each layer, and ResNet-50 with CBAM in every block before the
  addition, fused as relu(y + identity) (`insert_cbam(where="in_block")`, also for *eager* and *compile*);
  channels_last, float32. A training step is forward, cross-entropy, backward and SGD on a batch in memory. *none* has
  no CBAM. *compile* compiles the CBAM modules, not the network, so the rest is the same. Logits and gradients must
  agree with float64 first. The **CBAM tax** is the extra time over *none* in the same round: its median and its
  interquartile range.
- **resnet18 compiled**: torch.compile compiles the whole network. *bare* has the operators instead of CBAM, without the
  module's checks and choices; its logits must equal those of *fused* bit for bit. The difference between *fused* and
  *bare* is the module's cost in compiled code.
- GPU rows appear if CUDA is available. Feature maps: calls in a CUDA graph, on alternating tensors that exceed L2,
  replayed for at least 20 ms between two events; bwd is fwd+bwd minus a forward that saves the tensors for the
  backward. Networks: ten consecutive steps between two events, after others, and the host's time. `pytest bench/` has
  not run on a GPU; the predecessor of `bench/gpu.py` measured the operators on an H100 ([cuda.md](../design/cuda.md)).
- `--minutes 5` limits the time; `--record FILE` saves each result and skips those that FILE has.
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
