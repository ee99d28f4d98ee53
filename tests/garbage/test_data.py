"""The garbage classifier: the sample set, and folders of images."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from garbage_runs import SMALL, files_below
from PIL import Image
from torch.nn import functional as F

from garbage.data import folders, sources
from garbage.data.augmentation import train_transform
from garbage.data.loading import epoch_batches, make_loader, share_of
from garbage.samples import draw
from garbage.settings import Settings
from train_example import main

pytestmark = pytest.mark.usefixtures("undrawn")


def test_sample_set_is_the_same_for_one_seed_only(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        draw.draw_sample_set(tmp_path / name, seed, {"train": 2, "val": 1})
    a, b, c = (files_below(tmp_path / name) for name in "abc")
    assert a == b
    assert sorted({Path(p).parts[1] for p in a}) == sorted(draw.PAINTERS) and len(draw.PAINTERS) == 12
    assert len(a) == 36 and len(set(a.values()) | set(c.values())) == 72


def test_sample_set_is_complete_or_absent(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    draw.draw_sample_set(folder, counts={"train": 1, "val": 1})
    before = files_below(folder)

    def fails_at_last(name, rng, picture=draw.picture):
        if name == "white_glass":
            raise OSError("disk full")
        return picture(name, rng)

    monkeypatch.setattr(draw, "picture", fails_at_last)
    for target in (folder, tmp_path / "other"):
        with pytest.raises(OSError, match="disk full"):
            draw.draw_sample_set(target, seed=1, counts={"train": 1, "val": 1})
    assert files_below(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_linear_model_stays_far_below_the_network(tmp_path):
    """The network passes 90 %; ridge regression on the pixels, its strength chosen on val, must miss that by 25."""
    draw.draw_sample_set(tmp_path / "set")
    images = folders.load_folder(tmp_path / "set", 64, workers=2)
    assert len(images.train) == 12 * draw.COUNTS["train"] and len(images.val) == 12 * draw.COUNTS["val"]
    x, x_val = (
        F.interpolate(torch.stack(list(i.cache)) / 255, size=16, mode="area").flatten(1)
        for i in (images.train, images.val)
    )
    x_val = x_val - x.mean(0)
    x = x - x.mean(0)
    targets = F.one_hot(images.train.labels).float() - 1 / 12
    accuracies = {"train": [], "val": []}
    for strength in (10, 100, 1000):
        weight = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]), x.T @ targets)
        for part, pixels, labels in (("train", x, images.train.labels), ("val", x_val, images.val.labels)):
            accuracies[part].append(((pixels @ weight).argmax(1) == labels).float().mean().item())
    assert max(accuracies["train"]) > 0.5, "the linear model was not fitted"
    assert 2 / 12 < max(accuracies["val"]) < 0.65


def test_split_is_stratified_disjoint_and_always_the_same(two_classes):
    first, second = (folders.load_folder(two_classes, 32, workers=1) for _ in range(2))
    assert first.classes == ["paper", "shoes"]
    assert first.val.labels.tolist().count(0) == 1 and first.val.labels.tolist().count(1) == 2
    assert len(set(first.train.paths) | set(first.val.paths)) == 15 == len(first.train) + len(first.val)
    assert first.val.paths == second.val.paths


def test_unreadable_images_are_named_and_left_out(two_classes, tmp_path, capsys):
    broken = {two_classes / "shoes" / "empty.png", two_classes / "paper" / "cut.png"}
    good = (two_classes / "shoes" / "0.png").read_bytes()
    for path, content in zip(sorted(broken), (good[: len(good) // 2], b""), strict=True):
        path.write_bytes(content)
    assert main(["train", "--data", str(two_classes), "--out", str(tmp_path / "run"), *SMALL]) == 0
    output = capsys.readouterr().out
    assert all(f"skipped {path}: " in output for path in broken) and "12 images for training, 3 for val" in output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(config["environment"]["unreadable"]) == set(map(str, broken))


def test_training_takes_the_kinds_of_images_that_predict_takes(two_classes):
    """Files that this Pillow cannot read are reported."""
    with Image.open(two_classes / "shoes" / "0.png") as image:
        image.save(two_classes / "shoes" / "0.gif")
        image.convert("RGB").save(two_classes / "shoes" / "0.JFIF", "JPEG")
    (two_classes / "shoes" / "0.heic").write_bytes(b"of a telephone")
    (two_classes / "shoes" / "notes.txt").write_text("no image")
    images = folders.load_folder(two_classes, 32, workers=1)
    names = {path.name for path in images.train.paths + images.val.paths if path.parent.name == "shoes"}
    assert names == {f"{i}.png" for i in range(10)} | {"0.gif", "0.JFIF"}
    assert [path.name for path in images.unreadable] == ["0.heic"]
    assert names | {"0.heic"} == {path.name for path in sources.find_images([two_classes / "shoes"])[0]}


def test_a_name_that_is_not_utf8_is_named_and_left_out(two_classes, run, tmp_path, capsys):
    """As in old archives. Python decodes such bytes to lone surrogates, which UTF-8 cannot encode."""
    odd = two_classes / "shoes" / os.fsdecode(b"caf\xe9.png")
    (two_classes / "shoes" / "0.png").rename(odd)
    shown = str(odd).replace("\udce9", r"\udce9") + ": ValueError: its path is not UTF-8; rename it"
    assert main(["train", "--data", str(two_classes), "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert main(["inspect", "--data", str(two_classes), "--out", str(tmp_path / "inspect")]) == 0
    options = ["--csv", str(tmp_path / "p.csv"), "--json", str(tmp_path / "p.json")]
    assert main(["predict", "--run", str(run), *options, str(two_classes)]) == 0
    output = capsys.readouterr().out
    assert output.count(shown) == 3 and "11 images for training, 3 for val" in output
    assert [image["path"] for image in json.loads((tmp_path / "p.json").read_text())["skipped"]] == [str(odd)]
    assert main(["train", "--data", str(two_classes), "--out", str(tmp_path / odd.name)]) == 2
    assert "cannot be written: its path is not UTF-8" in capsys.readouterr().err


def test_a_set_too_large_for_memory_gives_the_same_batches(drawn, monkeypatch):
    transform = train_transform(Settings(data=None, augment="trivial"), 32)

    def batches(workers):
        images = folders.load_folder(drawn, 32, workers)
        return images, list(
            make_loader(images.train, epoch_batches(images.train.labels, 5, (0, 1)), workers, transform)
        )

    cached, expected = batches(workers=0)
    monkeypatch.setattr(folders, "CACHE_BYTES", 0)
    for workers in (0, 2):
        streamed, got = batches(workers)
        assert cached.train.cache is not None and streamed.train.cache is None
        assert [len(labels) for _, labels in got] == [5, 5, 5, 5, 4]
        assert all(torch.equal(a, b) for x, y in zip(expected, got, strict=True) for a, b in zip(x, y, strict=True))


def test_batches_leave_the_global_generator_alone_and_follow_their_seed(drawn):
    images = folders.load_folder(drawn, 32, 1).train
    transform, batches = train_transform(Settings(data=None, erasing=0.5), 32), epoch_batches(images.labels, 8, (0, 1))
    state = torch.get_rng_state()
    first = list(make_loader(images, batches, 0, transform))
    torch.manual_seed(5)
    again = list(make_loader(images, batches[1:], 0, transform))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first[1:], again, strict=True))
    other = [batch._replace(seed=batch.seed + 1) for batch in batches]
    for (pixels, _), (others, _) in zip(first, make_loader(images, other, 0, transform), strict=True):
        assert not torch.equal(pixels, others)
    torch.set_rng_state(state)


def test_a_last_batch_of_one_image_is_not_trained_on(two_classes):
    images = folders.load_folder(two_classes, 32, workers=1)
    assert [len(batch.indices) for batch in epoch_batches(images.train.labels, 11, (0, 1))] == [11]
    assert [len(batch.indices) for batch in share_of(images.val, 2)] == [2, 1]


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 300), (36, 48)), ((50, 30), (30, 50)), ((20, 300), (40, 20)), ((900, 100), (36, 72))]
)
def test_training_images_keep_their_form_and_are_not_enlarged(tmp_path, size, expected):
    """(width, height) to (height, width): the shorter side at most 36, the longer at most twice the shorter."""
    Image.new("RGB", size).save(tmp_path / "image.png")
    assert folders.decode_whole(tmp_path / "image.png", 36).shape == (3, *expected)


def test_decode_follows_exif_and_crops_the_longer_side(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated camera: left becomes top
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    image = folders.decode(tmp_path / "turned.jpg", 20)
    assert image.shape == (3, 20, 20) and image.dtype == torch.uint8
    assert image[0, :8].min() > 200 and image[0, 12:].max() < 50
