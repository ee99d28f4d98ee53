"""The garbage classifier: inspect."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from train_example import main


def test_inspect_finds_what_is_wrong_with_a_folder(drawn, tmp_path, capsys):
    folder, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(drawn, folder)
    copied, train = folder / "val" / "paper" / "copy.bmp", folder / "train"
    Image.open(train / "shoes" / "0000.png").save(copied)  # the same pixels in another format, across parts and classes
    shutil.copy(train / "metal" / "0000.png", train / "metal" / "twin.png")
    (train / "trash" / "broken.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    Image.new("RGB", (90, 40)).save(train / "trash" / "wide.png")
    assert main(["inspect", "--data", str(folder), "--out", str(out), "--image-size", "32", "--augment", "rand"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"unreadable, skipped in training: {train / 'trash' / 'broken.jpg'}: UnidentifiedImageError" in printed
    assert "2 groups of duplicates, 1 of them in both parts or several classes" in printed
    assert f"same pixels: {train / 'shoes' / '0000.png'}, {copied}" in printed
    assert "width: 80 to 90 pixels" in printed and "height: 40 to 80 pixels" in printed
    found = json.loads((out / "inspection.json").read_text())
    shown = dict(zip(found["classes"], found["counts"]["train"], strict=True))
    assert shown == dict.fromkeys(found["classes"], 2) | {"metal": 3, "trash": 3}
    assert len(found["duplicates"]) == 2 and found["sizes"][str(train / "trash" / "wide.png")] == [90, 40]
    assert json.loads((out / "class_indices.json").read_text())["0"] == "battery"
    for name in ("class_counts.png", "image_sizes.png", "samples.png"):
        with Image.open(out / name) as image:
            assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_names_of_classes_are_no_markup(two_classes, tmp_path, capsys):
    """Neither rich's nor matplotlib's."""
    (two_classes / "paper").rename(two_classes / "[b]x$_$")
    assert main(["inspect", "--data", str(two_classes), "--out", str(tmp_path / "out")]) == 0
    assert " [b]x$_$ " in capsys.readouterr().out


def test_mean_and_deviation_are_those_of_the_pixels(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8) // np.array([1, 2, 4], dtype=np.uint8)
    for part in ("train", "val"):
        for i, name in enumerate("abab" if part == "train" else "ab"):
            (tmp_path / "set" / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(tmp_path / "set" / part / name / f"{i}.png")
    assert main(["inspect", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--image-size", "32"]) == 0
    found = json.loads((tmp_path / "out" / "inspection.json").read_text())
    scaled = pixels.reshape(-1, 3) / 255
    assert found["mean"] == pytest.approx(scaled.mean(0)) and found["std"] == pytest.approx(scaled.std(0))


def test_inspect_refuses_a_class_without_images(two_classes, tmp_path, capsys):
    for path in (two_classes / "paper").iterdir():
        path.write_bytes(b"broken")
    assert main(["inspect", "--data", str(two_classes), "--out", str(tmp_path / "out")]) == 2
    assert f"no readable images in {two_classes / 'paper'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
