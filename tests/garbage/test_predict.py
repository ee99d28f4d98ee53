"""The garbage classifier: predict."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from garbage_runs import REPO, files_below
from PIL import Image

from garbage.samples import draw
from garbage.use import inference
from train_example import main


def test_predict_skips_what_it_cannot_read(run, drawn, tmp_path):
    """As a separate program without a terminal: good pictures, a corrupt one, a missing one and a text file."""
    shutil.copytree(drawn / "val", tmp_path / "val")
    (tmp_path / "val" / "metal" / "broken.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    (tmp_path / "val" / "metal" / "notes.txt").write_text("not an image")
    loose = tmp_path / "loose.PNG"
    shutil.copy(drawn / "train" / "paper" / "0000.png", loose)
    sources = [str(tmp_path / "val"), str(loose), str(tmp_path / "gone.png")]
    command = [sys.executable, str(REPO / "train_example.py"), "predict", "--run", str(run), *sources]
    options = ["--csv", str(tmp_path / "out.csv"), "--json", str(tmp_path / "out.json")]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    for name in ("val/metal/broken.jpg", "gone.png"):
        assert f"skipped {tmp_path / name}: " in result.stdout
    assert "classified 13 images" in result.stdout and "no images: 1 .txt" in result.stdout
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["path"] for r in rows] == [*map(str, sorted((tmp_path / "val").rglob("*.png"))), str(loose)]
    for row in rows:
        top = [float(row[f"probability_{i}"]) for i in (1, 2, 3)]
        assert 1 >= top[0] >= top[1] >= top[2] > 0 and sum(top) <= 1 + 1e-5
        assert len({row[f"class_{i}"] for i in (1, 2, 3)} & set(draw.PAINTERS)) == 3
    right = sum(Path(r["path"]).parent.name == r["class_1"] for r in rows)
    assert f"{right} of 12 images in folders named after a class" in result.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert [i["path"] for i in content["images"]] == [row["path"] for row in rows]
    for image, row in zip(content["images"], rows, strict=True):
        assert [t["class"] for t in image["top"]] == [row[f"class_{i}"] for i in (1, 2, 3)]
        assert [t["probability"] for t in image["top"]] == [float(row[f"probability_{i}"]) for i in (1, 2, 3)]
    assert {Path(s["path"]).name for s in content["skipped"]} == {"broken.jpg", "gone.png"}


def test_predict_repeats_the_validation_accuracy(run, drawn, tmp_path, capsys):
    best = torch.load(run / "best.pt", weights_only=True)["metrics"]
    options = ["--csv", str(tmp_path / "p.csv"), "--json", str(tmp_path / "p.json")]
    assert main(["predict", "--run", str(run / "best.pt"), *options, str(drawn / "val")]) == 0
    assert f"accuracy {best['val_accuracy']:.2%}: " in capsys.readouterr().out


def test_predict_fails_only_if_nothing_can_be_classified(run, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    for source in (tmp_path / "broken.png", tmp_path):
        assert main(["predict", "--run", str(run), str(source)]) == 1
        captured = capsys.readouterr()
        assert "broken.png: UnidentifiedImageError" in captured.out and "no image could be classified" in captured.err
    assert not (run / "predictions.csv").exists() and not (run / "predictions.json").exists()


@pytest.mark.parametrize(("content", "message"), [(None, "is not a finished run"), (b"junk", "is not a checkpoint")])
def test_predict_needs_a_finished_run(tmp_path, drawn, capsys, content, message):
    if content is not None:
        (tmp_path / "best.pt").write_bytes(content)
    assert main(["predict", "--run", str(tmp_path), str(drawn)]) == 2
    assert message in capsys.readouterr().err


def test_batches_change_nothing(run, drawn, tmp_path, monkeypatch):
    """Twelve images in batches of 5, 5 and 2, the first batch without a readable one."""
    folder = tmp_path / "set"
    shutil.copytree(drawn / "val", folder)
    for i in range(5):
        (folder / f"{i}.png").write_bytes(b"broken")  # sorted before the class folders

    def probabilities(batch):
        monkeypatch.setattr(inference, "BATCH", batch)
        options = ["--top", "12", "--csv", str(tmp_path / "p.csv"), "--json", str(tmp_path / "p.json")]
        assert main(["predict", "--run", str(run), *options, str(folder)]) == 0
        images = json.loads((tmp_path / "p.json").read_text())["images"]
        return {i["path"]: {t["class"]: t["probability"] for t in i["top"]} for i in images}

    whole, parts = probabilities(64), probabilities(5)
    assert list(whole) == list(parts) and len(whole) == 12
    for path, expected in whole.items():
        assert parts[path] == pytest.approx(expected, abs=2e-6) and sum(expected.values()) == pytest.approx(1, abs=1e-4)


def test_annotated_copies_beside_nothing(run, drawn, tmp_path):
    folder, out = tmp_path / "set", tmp_path / "annotated"
    (folder / "a").mkdir(parents=True)
    for name in ("1.png", "1.jpg", "a/1.png"):
        Image.open(drawn / "val" / "metal" / "0000.png").save(folder / name)
    before = files_below(folder)
    options = ["--csv", str(tmp_path / "p.csv"), "--json", str(tmp_path / "p.json"), "--annotate", str(out)]
    assert main(["predict", "--run", str(run), *options, "--top", "2", str(folder), str(folder / "1.png")]) == 0
    assert set(files_below(out)) == {"1.jpg", "1_2.jpg", "a/1.jpg"} and files_below(folder) == before
    with Image.open(out / "1.jpg") as image:
        assert image.format == "JPEG" and image.width == 320 and image.height > 80 + 2 * 20
        photo, band = image.crop((120, 0, 200, 80)), image.crop((0, 80, 320, image.height)).convert("L")
        original = Image.open(drawn / "val" / "metal" / "0000.png").convert("RGB")
        assert np.abs(np.asarray(photo, float) - np.asarray(original, float)).mean() < 12
        assert band.getextrema()[0] < 40 and band.getextrema()[1] > 200, "no light text on the dark band"


def test_both_tables_in_one_file_are_refused(run, drawn, tmp_path, capsys):
    options = ["--csv", str(tmp_path / "p"), "--json", str(tmp_path / "new" / ".." / "p")]
    assert main(["predict", "--run", str(run), *options, str(drawn / "val")]) == 2
    assert "--csv and --json are one file" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["set", "set/deep"])
def test_annotated_copies_never_go_among_the_originals(run, drawn, tmp_path, capsys, inside):
    folder = tmp_path / "set"
    shutil.copytree(drawn / "val" / "metal", folder)
    before = files_below(tmp_path)
    for source in [folder, *([folder / "0000.png"] if inside == "set" else [])]:
        assert main(["predict", "--run", str(run), "--annotate", str(tmp_path / inside), str(source)]) == 2
        assert "where the images are; name another folder" in capsys.readouterr().err
    assert files_below(tmp_path) == before
