"""A few minutes of builds, tests and measurements on a GPU, the most important first: python tools/gpu.py --minutes 10

It builds the kernels for this GPU, runs some tests, measures the table, measures and profiles the training step, and
then starts the rest. Each program writes its results to runs/gpu at once; the same command resumes, on the same kind of
GPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "gpu"
PATIENCE = 20  # seconds from SIGTERM to SIGKILL


def steps(python: str, out: Path) -> list[tuple[str, float, list[str]]]:
    """Name, maximum minutes, and the command, which accepts --minutes unless its name is build."""
    pytest, bench = [python, "-m", "pytest", "-q"], [python, "-m", "bench.gpu", f"{out}/gpu.json"]
    tests = ["-m", "cuda", "--record", f"{out}/tests.jsonl"]
    return [
        ("build", 6, [python, "setup.py", "build_ext", "--inplace"]),
        ("some tests", 1.5, [*pytest, "tests/cuda/test_gpu.py", "tests/numerics", *tests]),
        ("table", 2.5, [*bench, "--parts", "copy", "cuda"]),
        ("training step", 2, [*bench, "--parts", "step", "profile"]),
        ("selftest", 2, [python, "-m", "cbam_fused", "selftest", "--parts", "cuda", "--out", f"{out}/selftest.json"]),
        ("rest of the table", 4, bench),
        ("all tests", 5, [*pytest, "tests", *tests]),
        ("benchmarks", 60, [*pytest, "bench/", "-k", "cuda", "--record", f"{out}/bench.jsonl"]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="total time limit (default: %(default)g)")
    deadline = time.monotonic() + 60 * parser.parse_args().minutes
    OUT.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    outcomes: list[tuple[str, int | str, float]] = []
    try:
        for name, most, command in steps(sys.executable, OUT):
            left = (deadline - time.monotonic()) / 60
            if left <= 0:
                break
            start = time.monotonic()
            code = run(name, command, min(most, left))
            outcomes.append((name, code, time.monotonic() - start))
            if name == "build" and code:
                break
    finally:
        for name, code, seconds in outcomes:
            print(f"{name:<20} {'ok' if code == 0 else f'exit status {code}':<16} {seconds:6.0f} s")
        print(f"results are in {OUT.relative_to(ROOT)}")
    return int(any(code for _, code, _ in outcomes))


def run(name: str, command: list[str], minutes: float) -> int:
    """The exit status of a command, which is terminated when its time is over or when this program ends."""
    command = command if name == "build" else [*command, "--minutes", f"{minutes:.2f}"]
    print(f"\n{name}: {' '.join(command)}", flush=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"})
    try:
        return process.wait(60 * minutes + (0 if name == "build" else PATIENCE))
    except subprocess.TimeoutExpired:
        print(f"{name}: out of time", flush=True)
        return 1
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
