"""Train a household-garbage classifier with CBAM, and classify images with it.

python train_example.py                                     the built-in sample set, in a few minutes on two cores
python train_example.py inspect --data DIR                  look at images before training
python train_example.py train --data DIR --out RUN          train on a folder of class folders
python train_example.py train --resume RUN                  resume a run that was stopped or killed
python train_example.py report --run RUN                    redraw its plots and report.html
python train_example.py evaluate --run RUN FOLDER           measure it on other labelled images
python train_example.py predict --run RUN FOLDER_OR_IMAGE   classify images
python train_example.py explain --run RUN FOLDER_OR_IMAGE   show what it looks at
python train_example.py export --run RUN                    write it as .pt2 and ONNX
python train_example.py compare --data DIR --out FOLDER     without CBAM, with plain and with fused CBAM
"""

import os
import sys

try:
    from garbage import InputError, Interrupted
    from garbage.cli import build_parser
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; pip install '.[train]'")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: done. 1: training diverged, the disk is full, nothing could be classified. 2: bad input. 130: interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names may have any bytes
    args = build_parser(__doc__).parse_args((sys.argv[1:] if argv is None else argv) or ["train"])
    try:
        return args.run_command(args)
    except InputError as error:
        return _end(f"error: {error}", 2)
    except (FloatingPointError, OSError) as error:
        return _end(f"error: {error}", 1)
    except Interrupted as stop:
        return _end(str(stop), 130)
    except KeyboardInterrupt:
        return _end("stopped", 130)


def _end(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":  # with torchrun every process calls this
        print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
