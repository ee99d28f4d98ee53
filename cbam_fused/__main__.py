"""python -m cbam_fused info: versions, built kernels, backends; selftest: checks the results of each backend."""

import argparse
import sys
from pathlib import Path

from . import resume
from .info import facts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cbam_fused")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "versions, what was built, and which backend serves which tensors"
    commands.add_parser("info", help=text).set_defaults(run=info)
    text = "every backend against the float64 reference; writes a JSON file to attach to an issue"
    command = commands.add_parser("selftest", help=text, description=text)
    command.add_argument("--out", type=writable, default="cbam_fused_selftest.json", help="default: %(default)s")
    command.add_argument("--quick", action="store_true", help="one small map instead of those of ResNet-18 and -50")
    text = "the backends to check: cuda, triton, cpu (default: all that run here)"
    command.add_argument("--parts", nargs="+", metavar="BACKEND", help=text)
    resume.add_arguments(command)
    command.set_defaults(run=selftest)
    options = vars(parser.parse_args())
    del options["command"]
    return options.pop("run")(**options)


def writable(name: str) -> Path:
    """Raises before the checks, which take minutes."""
    try:
        Path(name).open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(name)


def selftest(**options) -> int:
    from .selftest import run  # heavy imports, which info does not need

    return run(**options)


def info() -> int:
    for name, value in facts().items():
        print(f"{name + ':':<20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
