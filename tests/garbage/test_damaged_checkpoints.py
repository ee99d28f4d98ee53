"""The garbage classifier: a clear error for checkpoints with missing, wrong, unexpected or NaN entries."""

import os
import shutil

import pytest
import torch
from choice import ALL

from train_example import main

WEIGHT = "conv1.weight"


def without(*path):
    def change(entries):
        for name in path[:-1]:
            entries = entries[name]
        del entries[path[-1]]

    return change


def with_(value, *path):
    def change(entries):
        for name in path[:-1]:
            entries = entries[name]
        entries[path[-1]] = value

    return change


# By name, the change of a checkpoint, and the message.
DAMAGES = {
    **{f"no {name}": (without(name), f"KeyError: '{name}'") for name in ("arch", "classes", "image_size", "epoch")},
    "no state_dict": (without("state_dict"), "KeyError: 'state_dict'"),
    "classes are a number": (with_(3, "classes"), "classes is a int, not a list"),
    "image_size is a text": (with_("32", "image_size"), "image_size is a str, not a int"),
    "image_size is negative": (with_(-32, "image_size"), "image_size is -32"),
    "a weight is missing": (without("state_dict", WEIGHT), f'Missing key(s) in state_dict: "{WEIGHT}"'),
    "one too many": (with_(torch.zeros(3), "state_dict", "more"), 'Unexpected key(s) in state_dict: "more"'),
    "another shape": (with_(torch.zeros(2, 2), "state_dict", WEIGHT), f"size mismatch for {WEIGHT}"),
    "no tensor": (with_(3, "state_dict", WEIGHT), f'"{WEIGHT}", expected torch.Tensor'),
    "NaN": (with_(torch.full((64, 3, 7, 7), float("nan")), "state_dict", WEIGHT), f"{WEIGHT} has values that are not"),
}
OF_THE_STATE = {
    **{
        f"no {name}": (without("resume", name), f"KeyError: '{name}'")
        for name in ("images", "processes", "progress", "optimizer", "schedule", "scaler")
    },
    "optimizer is a number": (with_(3, "resume", "optimizer"), "AttributeError"),
    "progress is a number": (with_(3, "resume", "progress"), "must be a mapping, not int"),
    "progress has more": (with_(3, "resume", "progress", "more"), "unexpected keyword argument 'more'"),
}


def damaged(run, name, change, folder):
    """The run with a changed checkpoint; the other files are links."""
    shutil.copytree(run, folder, copy_function=os.symlink, ignore=shutil.ignore_patterns(name))
    checkpoint = torch.load(run / name, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / name)
    return folder


@pytest.mark.parametrize("change,message", DAMAGES.values(), ids=DAMAGES)
def test_best(change, message, run, drawn, tmp_path, capsys):
    copy = damaged(run, "best.pt", change, tmp_path / "run")
    assert main(["predict", "--run", str(copy), str(drawn / "val")]) == 2
    error = capsys.readouterr().err
    assert "best.pt is not a checkpoint of this program" in error and message in error


# The entries are checked by one function, which the damages of best.pt try: of each further check one.
OF_LAST = OF_THE_STATE | {
    name: damage
    for name, damage in DAMAGES.items()
    if ALL or name in ("no classes", "image_size is a text", "a weight is missing", "another shape", "NaN")
}


@pytest.mark.parametrize("change,message", OF_LAST.values(), ids=OF_LAST)
def test_last(change, message, run, tmp_path, capsys):
    copy = damaged(run, "last.pt", change, tmp_path / "run")
    assert main(["train", "--resume", str(copy)]) == 2
    error = capsys.readouterr().err
    assert "last.pt is not a checkpoint to resume from" in error and message in error
