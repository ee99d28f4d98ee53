"""Prints the build time of each object of the last builds, the longest first.

    python tools/build_times.py

From ninja's log in build/objects: seconds from start to end, including the wait for a core if more compilers run than
there are cores. For all objects, rebuild: rm -r build/objects, then for example

    time CBAM_FUSED_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 python setup.py -q build_ext --build-lib build/timed
"""

from pathlib import Path

LOG = Path(__file__).parents[1] / "build" / "objects" / ".ninja_log"


def main() -> None:
    lines = [line.split("\t") for line in LOG.read_text().splitlines() if not line.startswith("#")]
    seconds = {Path(name).name: (int(end) - int(start)) / 1000 for start, end, _, name, _ in lines}
    for name, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{taken:7.1f}  {name}")
    print(f"{sum(seconds.values()):7.1f}  all")


if __name__ == "__main__":
    main()
