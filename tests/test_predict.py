"""The garbage classifier: predict."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from garbage_runs import REPO

from garbage import samples
from train_example import main


def test_predict_skips_what_it_cannot_read(run, drawn, tmp_path):
    """As a program of its own, without a terminal: good pictures, a corrupt one, a missing one and a text file."""
    shutil.copytree(drawn / "val", tmp_path / "val")
    (tmp_path / "val" / "metal" / "broken.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    (tmp_path / "val" / "metal" / "notes.txt").write_text("not an image")
    loose = tmp_path / "loose.PNG"
    shutil.copy(drawn / "train" / "paper" / "0000.png", loose)
    sources = [str(tmp_path / "val"), str(loose), str(tmp_path / "gone.png")]
    command = [sys.executable, str(REPO / "train_example.py"), "predict", "--run", str(run), *sources]
    result = subprocess.run([*command, "--csv", str(tmp_path / "out.csv")], capture_output=True, text=True, check=True)
    for name in ("val/metal/broken.jpg", "gone.png"):
        assert f"skipped {tmp_path / name}: " in result.stdout
    assert "classified 13 images" in result.stdout and "notes.txt" not in result.stdout
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows] == [*map(str, sorted((tmp_path / "val").rglob("*.png"))), str(loose)]
    for row in rows:
        top = [float(row[f"probability_{i}"]) for i in (1, 2, 3)]
        assert 1 >= top[0] >= top[1] >= top[2] > 0 and sum(top) <= 1 + 1e-5
        assert len({row[f"class_{i}"] for i in (1, 2, 3)} & set(samples.PAINTERS)) == 3
    right = sum(Path(r["path"]).parent.name == r["class_1"] for r in rows)
    assert f"{right} of 12 images in folders named after a class" in result.stdout


def test_predict_repeats_the_validation_accuracy(run, drawn, capsys):
    best = torch.load(run / "best.pt", weights_only=True)["metrics"]
    assert main(["predict", "--run", str(run), str(drawn / "val")]) == 0
    assert f"accuracy {best['val_accuracy']:.2%}: " in capsys.readouterr().out
    (run / "predictions.csv").unlink()


def test_predict_fails_only_if_nothing_can_be_classified(run, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    for source in (tmp_path / "broken.png", tmp_path):
        assert main(["predict", "--run", str(run), str(source)]) == 1
        captured = capsys.readouterr()
        assert "broken.png: UnidentifiedImageError" in captured.out and "no image could be classified" in captured.err
    assert not (run / "predictions.csv").exists()


@pytest.mark.parametrize(("content", "message"), [(None, "is not a finished run"), (b"junk", "is not a checkpoint")])
def test_predict_needs_a_finished_run(tmp_path, drawn, capsys, content, message):
    if content is not None:
        (tmp_path / "best.pt").write_bytes(content)
    assert main(["predict", "--run", str(tmp_path), str(drawn)]) == 2
    assert message in capsys.readouterr().err
