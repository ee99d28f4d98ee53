"""What a call costs beside its arithmetic, on a 1x8x2x2 map that has none: python -m bench.host [TREE ...]

TREE is a source tree whose kernels are built in place, such as a git worktree of another commit; without one it is this
tree. Each round runs every tree once, in turns, in a process of its own with one thread. In a process the calls take
turns, too. Printed are the median over the rounds of a process's least microseconds, as other work only adds to them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from cbam_fused import CBAM

LIMIT = 1.8  # of a module's step, in steps of relu(x + residual)
TURNS, CALLS = 300, 10


def calls() -> tuple[dict[str, Callable[[], object]], list[torch.Tensor]]:
    """What is timed, by name, and the leaves of its gradients."""
    torch.manual_seed(0)
    x, residual, dy = torch.randn(3, 1, 8, 2, 2).unbind()
    x, residual = x.requires_grad_(), residual.requires_grad_()
    module = CBAM(8)

    def without_gradients() -> None:
        with torch.no_grad():
            module(x)

    timed = {
        "relu(x + residual), both": lambda: F.relu(x + residual).backward(dy),
        "module with residual and ReLU, both": lambda: module(x, residual=residual, relu=True).backward(dy),
        "module, forward": lambda: module(x),
        "module, forward without gradients": without_gradients,
    }
    return timed, [x, residual, *module.parameters()]


def least() -> dict[str, float]:
    """The least microseconds of each call; the mean of a few calls in a row counts as one."""
    torch.set_num_threads(1)
    timed, leaves = calls()
    found = dict.fromkeys(timed, float("inf"))
    for _ in range(TURNS):
        for name, call in timed.items():
            seconds = 0.0
            for _ in range(CALLS):
                for leaf in leaves:
                    leaf.grad = None
                start = time.perf_counter()
                call()
                seconds += time.perf_counter() - start
            found[name] = min(found[name], seconds / CALLS * 1e6)
    return found


def least_in(tree: Path) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--one"]
    return json.loads(subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, default=[Path(__file__).parents[1]], metavar="TREE")
    parser.add_argument("--rounds", type=int, default=9, help="processes of each tree (default: %(default)s)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a process of a round
    args = parser.parse_args()
    if args.one:
        print(json.dumps(least()))
        return
    trees = [tree.resolve() for tree in args.trees]
    rounds = [{tree: least_in(tree) for tree in trees} for _ in range(args.rounds)]
    for tree in trees:
        us = {name: statistics.median(r[tree][name] for r in rounds) for name in rounds[0][tree]}
        plain, module, *_ = us.values()
        print(tree, *(f"  {value:7.2f} us  {name}" for name, value in us.items()), sep="\n")
        print(f"  {module / plain:7.2f} times as long, at most {LIMIT} is the goal")


if __name__ == "__main__":
    main()
