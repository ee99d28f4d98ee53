"""The garbage classifier: complete runs from the command line."""

import functools
import json
import math
import os
import shutil
import urllib.error
from pathlib import Path

import pytest
import torch
from garbage_runs import REPO, SMALL, files_below, read_log
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from cbam_fused.ops import registry
from garbage import cli
from garbage.data import folders
from garbage.data.augmentation import train_transform
from garbage.data.loading import epoch_batches, make_loader
from garbage.model import classifier
from garbage.run.folder import RUN_FILES
from garbage.samples import draw
from garbage.settings import Settings
from garbage.train import loop, start
from train_example import main

HELD = set(RUN_FILES) - {"predictions.csv", "predictions.json"} | {"tensorboard"}
PHOTOS = Path(os.environ.get("CBAM_FUSED_PHOTOS", REPO.parent / "shared" / "garbage12"))


@pytest.fixture
def no_report(monkeypatch):
    """Without the report, which takes longer than the run."""
    monkeypatch.setattr(loop, "write_report", lambda run: None)


def test_run_holds_every_artefact(run):
    assert {p.name for p in run.iterdir()} == HELD
    classes = sorted(draw.PAINTERS)
    assert json.loads((run / "class_indices.json").read_text()) == {str(i): c for i, c in enumerate(classes)}
    config = json.loads((run / "config.json").read_text())
    made = config["environment"]
    assert Path(config["data"]).is_absolute() and made["processes"] == 1 and made["threads"] >= 1
    assert (config["arch"], config["epochs"], config["image_size"], config["batch_size"]) == ("resnet18", 2, 32, 8)
    assert made["torch"] == torch.__version__ and made["train_images"] == 24 and made["val_images"] == 12
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


def test_tensorboard_shows_curves_and_the_images_of_the_first_step(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for tag, name in (("train_loss", "train_loss"), ("val_accuracy", "val_accuracy"), ("learning_rate", "lr")):
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (r["epoch"], pytest.approx(r[name])) for r in read_log(run)
        ]
    (image,) = events.Images("training")
    assert image.step == 1 and image.width > 8 * 32


def test_checkpoints_describe_themselves(run):
    log = read_log(run)
    last, best = (torch.load(run / name, weights_only=True) for name in ("last.pt", "best.pt"))
    assert last["epoch"] == 2 and last["metrics"] == log[-1]
    assert best["metrics"] == max(log, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert (best["arch"], best["cbam"], best["image_size"]) == ("resnet18", "each_layer", 32)
    assert best["classes"] == sorted(draw.PAINTERS)
    assert {f"layer{i}.cbam.sa.conv1.weight" for i in (1, 2, 3, 4)} <= set(best["state_dict"])


def test_one_seed_gives_one_loss_curve(run, drawn, tmp_path, no_report):
    def losses(out):
        return [(r["train_loss"], r["val_loss"]) for r in read_log(out)]

    main(["train", "--data", str(drawn), "--out", str(tmp_path / "again"), *SMALL])
    main(["train", "--data", str(drawn), "--out", str(tmp_path / "other"), *SMALL, "--seed", "1"])
    assert losses(tmp_path / "again") == losses(run)
    assert losses(tmp_path / "other") != losses(run)


@pytest.mark.skipif(bool(registry.cpu_missing), reason=f"nothing to compare: {registry.cpu_missing}")
def test_fused_and_reference_curves_agree(run, drawn, tmp_path, no_report):
    """The first epoch, three steps. Later steps in float32 differ as for weights changed by 1e-7; float64 is tested."""
    main(["train", "--data", str(drawn), "--out", str(tmp_path / "run"), *SMALL, "--backend", "reference"])
    fused, reference = (read_log(out)[0]["train_loss"] for out in (run, tmp_path / "run"))
    assert fused == pytest.approx(reference, rel=1e-3)
    configs = [json.loads((out / "config.json").read_text()) for out in (run, tmp_path / "run")]
    assert [config["environment"]["cbam_kernels"] for config in configs] == ["cpu", "reference"]


@pytest.mark.skipif(bool(registry.cpu_missing), reason=f"nothing to compare: {registry.cpu_missing}")
def test_fused_and_reference_curves_agree_to_the_last_step_in_float64(drawn):
    images = folders.load_folder(drawn, 32, workers=1).train

    def losses(backend):
        torch.manual_seed(0)
        network = classifier.build_model("resnet18", 12, "each_layer", backend).double().train()
        optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
        for epoch in range(3):
            batches = epoch_batches(images.labels, 8, (0, epoch))
            for batch, labels in make_loader(images, batches, 0, train_transform(Settings(data=None), 32)):
                loss = F.cross_entropy(network(folders.normalise(batch).double()), labels)
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
    small = functools.partial(draw.draw_sample_set, counts={"train": 2, "val": 1})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "draw_sample_set", small)
    return Path("runs/sample")


@pytest.mark.parametrize(("load", "given", "said"), [(9.0, None, True), (1.0, None, False), (9.0, "active", False)])
def test_a_busy_machine_is_told_what_helps(load, given, said, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert ("the load is 9 on 2 cores: OMP_WAIT_POLICY=passive" in start.busy_machine()) == said


def test_training_prints_it(small_default, monkeypatch, capsys):
    done = dict.fromkeys(["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"], 0)
    monkeypatch.setattr(cli, "train", lambda *args, **kwargs: done)
    monkeypatch.setattr(cli, "busy_machine", lambda: "the load is 9")
    assert main([]) == 0
    assert "the load is 9\n" in capsys.readouterr().out


def test_without_arguments_it_is_the_main_job(small_default, monkeypatch):
    seen = []

    def record_call(*args, **kwargs):
        seen.append((args, kwargs))
        return dict.fromkeys(["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"], 0)

    monkeypatch.setattr(cli, "train", record_call)
    assert main([]) == 0
    (settings, images, out), options = seen[0]
    assert (settings.data, settings.arch, settings.cbam, settings.backend) == (None, "resnet18", "each_layer", "fused")
    assert (len(images.classes), len(images.train), out, options) == (12, 24, small_default, {"go_on": False})


def test_the_default_run_may_be_repeated_but_not_over_another(small_default, drawn, tmp_path, capsys, no_report):
    for _ in range(2):
        assert main(["train", "--epochs", "1", "--image-size", "32"]) == 0
    assert len(read_log(small_default)) == 1
    assert (small_default / "sample_set" / "val" / "metal").is_dir()
    shutil.rmtree(small_default)
    assert main(["train", "--data", str(drawn), "--out", str(small_default), *SMALL]) == 0
    before = files_below(tmp_path)
    assert main([]) == 2
    assert "runs/sample is not empty" in capsys.readouterr().err
    assert files_below(tmp_path) == before
    (small_default / "config.json").write_text("{")
    assert main([]) == 2
    assert "runs/sample/config.json cannot be read: JSONDecodeError" in capsys.readouterr().err


def test_photos_are_learned(tmp_path, no_report):
    if not (PHOTOS / "train").is_dir():
        pytest.skip(f"no photos in {PHOTOS}; CBAM_FUSED_PHOTOS names another folder")
    for part, count in (("train", 8), ("val", 2)):
        for folder in (PHOTOS / part).iterdir():
            (tmp_path / "set" / part / folder.name).mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:count]:
                (tmp_path / "set" / part / folder.name / photo.name).symlink_to(photo)
    out = tmp_path / "run"
    options = ["--epochs", "5", "--image-size", "48", "--batch-size", "16", "--lr", "0.02", "--warmup-epochs", "1"]
    assert main(["train", "--data", str(tmp_path / "set"), "--out", str(out), *options]) == 0
    losses = [r["train_loss"] for r in read_log(out)]
    assert losses[-1] < losses[0] - 0.1, losses


def test_pretrained_without_a_network_says_what_to_do(drawn, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "run"), "--pretrained"]) == 2
    message = capsys.readouterr().err
    assert "cannot be downloaded" in message and "resnet18-" in message and "without --pretrained" in message
    assert not (tmp_path / "run").exists()
