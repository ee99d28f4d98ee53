"""train_example.py from end to end: what a run writes, what predict finds, and what each wrong input says."""

import csv
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

import train_example
from cbam_fused import _ops
from garbage import data, model, samples
from garbage.checkpoint import RUN_FILES
from train_example import main

REPO = Path(train_example.__file__).parent
PHOTOS = Path(os.environ.get("CBAM_FUSED_PHOTOS", REPO.parent / "shared" / "garbage12"))
SMALL = ["--epochs", "2", "--image-size", "32", "--batch-size", "8"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A sample set of 2 training pictures and 1 validation picture a class."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    samples.draw_sample_set(folder, counts={"train": 2, "val": 1})
    return folder


@pytest.fixture(scope="module")
def run(drawn, tmp_path_factory) -> Path:
    """A finished run on the small set."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "--data", str(drawn), "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture
def two_classes(drawn, tmp_path) -> Path:
    """Class folders without a split: 10 pictures of shoes, 5 of paper."""
    folder = tmp_path / "two"
    for name, count in (("shoes", 10), ("paper", 5)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shutil.copy(drawn / "train" / name / "0000.png", folder / name / f"{i}.png")
    return folder


def read_log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The sample set


def test_sample_set_is_the_same_for_one_seed_only(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        samples.draw_sample_set(tmp_path / name, seed, {"train": 2, "val": 1})
    a, b, c = (files_below(tmp_path / name) for name in "abc")
    assert a == b
    assert sorted({Path(p).parts[1] for p in a}) == sorted(samples.PAINTERS) and len(samples.PAINTERS) == 12
    assert len(a) == 36 and len(set(a.values()) | set(c.values())) == 72


def test_sample_set_is_complete_or_absent(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    samples.draw_sample_set(folder, counts={"train": 1, "val": 1})
    before = files_below(folder)

    def fails_at_last(name, rng, picture=samples.picture):
        if name == "white_glass":
            raise OSError("disk full")
        return picture(name, rng)

    monkeypatch.setattr(samples, "picture", fails_at_last)
    for target in (folder, tmp_path / "other"):
        with pytest.raises(OSError, match="disk full"):
            samples.draw_sample_set(target, seed=1, counts={"train": 1, "val": 1})
    assert files_below(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_linear_model_stays_far_below_the_network(tmp_path):
    """The network passes 90 %; ridge regression on the pixels, its strength chosen on val, must miss that by 25."""
    samples.draw_sample_set(tmp_path / "set")
    images = data.load_folder(tmp_path / "set", 64, workers=2)
    assert len(images.train) == 12 * samples.COUNTS["train"] and len(images.val) == 12 * samples.COUNTS["val"]
    x, x_val = (
        F.interpolate(torch.stack(i.cache) / 255, size=16, mode="area").flatten(1) for i in (images.train, images.val)
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


# A run


def test_run_holds_every_artefact(run):
    assert {p.name for p in run.iterdir()} == set(RUN_FILES) - {"predictions.csv"}
    classes = sorted(samples.PAINTERS)
    assert json.loads((run / "class_indices.json").read_text()) == {str(i): c for i, c in enumerate(classes)}
    config = json.loads((run / "config.json").read_text())
    assert (config["arch"], config["epochs"], config["image_size"], config["batch_size"]) == ("resnet18", 2, 32, 8)
    assert config["torch"] == torch.__version__ and config["train_images"] == 24 and config["val_images"] == 12
    log = read_log(run)
    assert [r["epoch"] for r in log] == [1, 2]
    names = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second"]
    for record in log:
        assert list(record) == names
        assert all(math.isfinite(v) for v in record.values()) and record["images_per_second"] > 0
        assert math.isclose(record["val_accuracy"] * 12, round(record["val_accuracy"] * 12), abs_tol=1e-5)
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(run / name) as image:
            image.load()
            assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_checkpoints_describe_themselves(run):
    log = read_log(run)
    last, best = (torch.load(run / name, weights_only=True) for name in ("last.pt", "best.pt"))
    assert last["epoch"] == 2 and last["metrics"] == log[-1]
    assert best["metrics"] == max(log, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert (best["arch"], best["cbam"], best["image_size"]) == ("resnet18", "each_layer", 32)
    assert best["classes"] == sorted(samples.PAINTERS)
    assert {f"layer{i}.cbam.sa.conv1.weight" for i in (1, 2, 3, 4)} <= set(best["state_dict"])


def test_one_seed_gives_one_loss_curve(run, drawn, tmp_path):
    def losses(out):
        return [(r["train_loss"], r["val_loss"]) for r in read_log(out)]

    main(["train", "--data", str(drawn), "--out", str(tmp_path / "again"), *SMALL])
    main(["train", "--data", str(drawn), "--out", str(tmp_path / "other"), *SMALL, "--seed", "1"])
    assert losses(tmp_path / "again") == losses(run)
    assert losses(tmp_path / "other") != losses(run)


@pytest.mark.skipif(bool(_ops.cpu_missing), reason=f"nothing to compare: {_ops.cpu_missing}")
def test_fused_and_reference_curves_agree(run, drawn, tmp_path):
    """The first epoch, three steps. Later ones part in float32 as they do for weights changed by 1e-7: see float64."""
    main(["train", "--data", str(drawn), "--out", str(tmp_path / "run"), *SMALL, "--backend", "reference"])
    fused, reference = (read_log(out)[0]["train_loss"] for out in (run, tmp_path / "run"))
    assert fused == pytest.approx(reference, rel=1e-3)
    configs = [json.loads((out / "config.json").read_text())["cbam_kernels"] for out in (run, tmp_path / "run")]
    assert configs == ["cpu", "reference"]


@pytest.mark.skipif(bool(_ops.cpu_missing), reason=f"nothing to compare: {_ops.cpu_missing}")
def test_fused_and_reference_curves_agree_to_the_last_step_in_float64(drawn):
    images = data.load_folder(drawn, 32, workers=1).train

    def losses(backend):
        torch.manual_seed(0)
        network = model.build_model("resnet18", 12, "each_layer", backend).double().train()
        optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
        for epoch in range(3):
            for batch, labels in data.make_loader(images, 8, 0, shuffle_seed=epoch):
                loss = F.cross_entropy(network(data.normalise(batch).double()), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield loss.item()

    fused, reference = list(losses("fused")), list(losses("reference"))
    assert len(fused) == 9
    assert fused == pytest.approx(reference, rel=1e-8)


@pytest.fixture
def small_default(tmp_path, monkeypatch) -> Path:
    """The folder of the default run, in an empty working directory, with the sample set reduced to 36 pictures."""
    small = functools.partial(samples.draw_sample_set, counts={"train": 2, "val": 1})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_example, "draw_sample_set", small)
    return Path("runs/sample")


def test_without_arguments_it_is_the_main_job(small_default, monkeypatch):
    seen = []

    def record_call(*args):
        seen.append(args)
        return dict.fromkeys(["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"], 0)

    monkeypatch.setattr(train_example, "train", record_call)
    assert main([]) == 0
    settings, images, out = seen[0]
    assert (settings.data, settings.arch, settings.cbam, settings.backend) == (None, "resnet18", "each_layer", "fused")
    assert (len(images.classes), len(images.train), out) == (12, 24, small_default)


def test_the_default_run_may_be_repeated_but_not_over_another(small_default, drawn, tmp_path, capsys):
    for _ in range(2):
        assert main(["train", "--epochs", "1", "--image-size", "32"]) == 0
    assert len(read_log(small_default)) == 1
    assert {p.name for p in small_default.iterdir()} == set(RUN_FILES) - {"predictions.csv"} | {"sample_set"}
    shutil.rmtree(small_default)
    assert main(["train", "--data", str(drawn), "--out", str(small_default), *SMALL]) == 0
    before = files_below(tmp_path)
    assert main([]) == 2
    assert "runs/sample is not empty" in capsys.readouterr().err
    assert files_below(tmp_path) == before


def test_photos_are_learned(tmp_path):
    if not (PHOTOS / "train").is_dir():
        pytest.skip(f"no photos in {PHOTOS}; CBAM_FUSED_PHOTOS names another folder")
    for part, count in (("train", 16), ("val", 4)):
        for folder in (PHOTOS / part).iterdir():
            (tmp_path / "set" / part / folder.name).mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:count]:
                (tmp_path / "set" / part / folder.name / photo.name).symlink_to(photo)
    out = tmp_path / "run"
    options = ["--epochs", "4", "--image-size", "64", "--batch-size", "16", "--lr", "0.02"]
    assert main(["train", "--data", str(tmp_path / "set"), "--out", str(out), *options]) == 0
    losses = [r["train_loss"] for r in read_log(out)]
    assert losses[-1] < losses[0] - 0.1, losses


# Data


def test_split_is_stratified_disjoint_and_always_the_same(two_classes):
    first, second = (data.load_folder(two_classes, 32, workers=1) for _ in range(2))
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
    assert all(f"left out {path}: " in output for path in broken) and "12 images for training, 3 for val" in output
    assert set(json.loads((tmp_path / "run" / "config.json").read_text())["unreadable"]) == set(map(str, broken))


def test_a_set_too_large_for_memory_gives_the_same_batches(drawn, monkeypatch):
    def batches(workers):
        images = data.load_folder(drawn, 32, workers)
        torch.manual_seed(0)
        return images, list(data.make_loader(images.train, 5, workers, shuffle_seed=1))

    cached, expected = batches(workers=0)
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    streamed, got = batches(workers=0)
    assert cached.train.cache is not None and streamed.train.cache is None
    assert [len(labels) for _, labels in got] == [5, 5, 5, 5, 4]
    assert all(torch.equal(a, b) for x, y in zip(expected, got, strict=True) for a, b in zip(x, y, strict=True))
    _, parallel = batches(workers=2)
    assert all(torch.equal(a[1], b[1]) and a[0].shape == b[0].shape for a, b in zip(expected, parallel, strict=True))


def test_a_last_batch_of_one_image_is_not_trained_on(two_classes):
    images = data.load_folder(two_classes, 32, workers=1)
    assert [len(labels) for _, labels in data.make_loader(images.train, 11, 0, shuffle_seed=0)] == [11]
    assert [len(labels) for _, labels in data.make_loader(images.val, 2, 0)] == [2, 1]


def test_decode_follows_exif_and_crops_the_longer_side(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left becomes top
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    image = data.decode(tmp_path / "turned.jpg", 20)
    assert image.shape == (3, 20, 20) and image.dtype == torch.uint8
    assert image[0, :8].min() > 200 and image[0, 12:].max() < 50


# The network


def test_pretrained_weights_are_loaded_before_the_insertion(monkeypatch):
    weights = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(model, "pretrained_weights", lambda arch: weights)
    got = model.build_model("resnet18", 5, pretrained=True).state_dict()
    assert all(torch.equal(got[k], v) for k, v in weights.items() if not k.startswith("fc."))
    assert got["fc.weight"].shape == (5, 512) and "layer4.cbam.ca.fc1.weight" in got


@pytest.mark.parametrize("arch", model.ARCHITECTURES)
def test_cbam_comes_after_each_layer_or_nowhere(arch):
    plain, attentive = (set(model.build_model(arch, 3, cbam).state_dict()) for cbam in ("none", "each_layer"))
    keys = ("ca.fc1.weight", "ca.fc2.weight", "sa.conv1.weight")
    assert attentive - plain == {f"layer{i}.cbam.{key}" for i in (1, 2, 3, 4) for key in keys} and plain < attentive


def test_pretrained_without_a_network_says_what_to_do(drawn, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "run"), "--pretrained"]) == 2
    message = capsys.readouterr().err
    assert "cannot be downloaded" in message and "resnet18-" in message and "without --pretrained" in message
    assert not (tmp_path / "run").exists()


# Wrong input


def _remove(*names):
    return lambda folder: [shutil.rmtree(folder / name) for name in names]


def _empty(name):
    return lambda folder: [p.unlink() for p in (folder / name).iterdir()]


def _corrupt(name):
    return lambda folder: [p.write_bytes(b"no image") for p in (folder / name).iterdir()]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (_remove("train", "val"), "holds no class folders"),
        (_remove("val"), "has only one of train/ and val/"),
        (_remove("val/paper", "train/metal"), "different classes; only in one of them: metal, paper"),
        (_empty("train/shoes"), "no images (.jpg"),
        (_empty("val/shoes"), "no images (.jpg"),
        (_corrupt("train/shoes"), "no readable images in"),
    ],
)
def test_unusable_data_is_refused_before_anything_is_written(drawn, tmp_path, capsys, spoil, message):
    folder = tmp_path / "set"
    shutil.copytree(drawn, folder)
    spoil(folder)
    assert main(["train", "--data", str(folder), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(folder) in error
    assert not (tmp_path / "run").exists()


def test_a_single_class_is_refused(two_classes, tmp_path, capsys):
    shutil.rmtree(two_classes / "paper")
    assert main(["train", "--data", str(two_classes), "--out", str(tmp_path / "run")]) == 2
    assert "holds only the class 'shoes'; at least two classes are needed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten(run, drawn, capsys):
    before = files_below(run)
    for source in (["--data", str(drawn)], []):
        assert main(["train", *source, "--out", str(run)]) == 2
        assert f"{run} is not empty; name another folder for --out" in capsys.readouterr().err
    assert files_below(run) == before


def test_an_unwritable_run_folder_is_refused(drawn, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "file" / "run")]) == 2
    assert "file is not a folder" in capsys.readouterr().err
    if os.geteuid() == 0:
        return  # nothing is forbidden to root
    (tmp_path / "closed").mkdir(mode=0o500)
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "closed" / "run")]) == 2
    assert "no permission in" in capsys.readouterr().err


def test_data_without_out_is_refused(drawn, capsys):
    assert main(["train", "--data", str(drawn)]) == 2
    assert "--out is needed with --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--epochs", "0"], "at least 1"),
        (["--batch-size", "1"], "at least 2"),
        (["--lr", "-1"], "positive"),
        (["--arch", "vgg"], "resnet18"),
    ],
)
def test_options_out_of_range_are_refused(option, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", *option])
    assert message in capsys.readouterr().err


def test_a_diverging_run_says_so(drawn, tmp_path, capsys):
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "run"), *SMALL, "--lr", "1e30"]) == 1
    assert "the training loss is" in capsys.readouterr().err


# Prediction


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
