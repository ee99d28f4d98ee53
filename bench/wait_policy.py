"""Cost of OMP_WAIT_POLICY=passive in training, or its gain on a busy machine: python -m bench.wait_policy [--busy N]

Trains ResNet-18 with CBAM on the sample set in separate processes, alternating between OpenMP's default policy (waiting
threads spin) and passive (they sleep), and compares the images per second of the second epoch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from garbage.samples.draw import draw_sample_set

POLICIES = ("default", "passive")
LIMIT = 0.02  # the largest cost of passive on a quiet machine at which train_example.py would set it
TRAIN = "import sys, torch, train_example; sys.exit(train_example.main(sys.argv[1:]))"
SPIN = "while True: pass"


def images_per_second(policy: str, data: Path, threads: int) -> float:
    """Train two epochs in a new process."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_NUM_THREADS": str(threads)} | ({} if policy == "default" else {"OMP_WAIT_POLICY": policy})
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = ["train", "--data", str(data), "--out", str(run), "--epochs", "2", "--image-size", "64"]
        subprocess.run([sys.executable, "-c", TRAIN, *options], env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads((run / "log.jsonl").read_text().splitlines()[-1])["images_per_second"]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Load on the cores: processes that count."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="number of load processes (default: none)")
    parser.add_argument("--rounds", type=int, default=5, help="trainings with each policy (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OpenMP threads (default: all cores)")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    with tempfile.TemporaryDirectory() as folder, busy(args.busy):
        draw_sample_set(Path(folder) / "set")
        for i in range(args.rounds):
            for policy in POLICIES if i % 2 == 0 else POLICIES[::-1]:
                rates[policy].append(images_per_second(policy, Path(folder) / "set", args.threads))
                print(f"{policy}: {rates[policy][-1]:.1f} images/s", flush=True)
    default, passive = (statistics.median(rates[policy]) for policy in POLICIES)
    cost = 1 - passive / default
    print(f"median: default {default:.1f}, passive {passive:.1f} images/s; passive costs {cost:+.1%}")
    if not args.busy:
        print(
            f"on a quiet machine: train_example.py {'sets' if cost < LIMIT else 'must not set'} it (limit {LIMIT:.0%})"
        )


if __name__ == "__main__":
    main()
