"""Dead gates after a recipe: python -m bench.dead_gates RECIPE [--data DIR] [-- OPTION ...]

Trains garbage/recipes/RECIPE.toml once per seed, with further options of `train` after --. Prints the accuracy and
AttentionMaps.problems of the gates of the best and of the last epoch over 60 validation images.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import cbam_fused
from garbage.data.folders import Images, load_folder, normalise
from garbage.run.folder import BEST, LAST, load_run
from garbage.samples.draw import draw_sample_set

REPO = Path(__file__).parent.parent
IMAGES = 60


def problems(checkpoint: Path, images: Images) -> tuple[dict, dict[str, list[str]]]:
    """The log record of a checkpoint, and the problems of each CBAM with problems."""
    model, content = load_run(checkpoint)
    step = max(1, len(images) // IMAGES)
    x = normalise(torch.stack(images.pixels(list(range(0, len(images), step)))))
    maps = cbam_fused.attention_maps(model, x)
    return content["metrics"], {name: gates.problems for name, gates in maps.items() if gates.problems}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="the name of a file in garbage/recipes, without .toml")
    parser.add_argument("--data", type=Path, help="class folders (default: the sample set)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("options", nargs="*", help="options of `train`, after --")
    args = parser.parse_args()
    recipe = REPO / "garbage" / "recipes" / f"{args.recipe}.toml"
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or Path(folder) / "set"
        if args.data is None:
            draw_sample_set(data)
        for seed in args.seeds:
            run = Path(folder) / str(seed)
            options = ["--config", str(recipe), "--data", str(data), "--out", str(run), "--seed", str(seed)]
            command = [sys.executable, str(REPO / "train_example.py"), "train", *options, *args.options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            size = load_run(run)[1]["image_size"]
            images = load_folder(data, size, 2).val
            for name in (BEST, LAST):
                record, found = problems(run / name, images)
                print(
                    f"seed {seed}, {name}: epoch {record['epoch']}, accuracy {record['val_accuracy']:.2%}", flush=True
                )
                for cbam, texts in found.items():
                    print(f"  {cbam}: " + "\n    ".join(texts), flush=True)


if __name__ == "__main__":
    main()
