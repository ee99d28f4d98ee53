"""Prints how long each object of the last builds took, the longest first.

    python tools/build_times.py

By ninja's log in build/objects: seconds from start to end, waiting for a core included where more compilers run than
there are. To see all, build anew: rm -r build/objects, then for example

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
