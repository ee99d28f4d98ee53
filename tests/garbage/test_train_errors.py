"""The garbage classifier: wrong input raises a clear error before anything is written."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from garbage_runs import REPO, SMALL, files_below

from cbam_fused import routing
from train_example import main

FROM_SCRATCH = REPO / "garbage" / "recipes" / "from_scratch.toml"


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


@pytest.mark.parametrize("command", ["train", "inspect", "compare"])
def test_results_never_go_among_the_images(two_classes, monkeypatch, capsys, command):
    """Their folder would be a class in the next run; inspect's default is in the working directory."""
    before = files_below(two_classes)
    monkeypatch.chdir(two_classes)
    for out in (["--out", str(two_classes / "run")], *([[]] if command == "inspect" else [])):
        assert main([command, "--data", ".", *out, *SMALL]) == 2
        assert f"lies in {two_classes}, where the images are; name another folder" in capsys.readouterr().err
    assert files_below(two_classes) == before


def test_an_unwritable_run_folder_is_refused(drawn, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "file" / "run")]) == 2
    assert "file is not a folder" in capsys.readouterr().err
    if os.geteuid() == 0:
        return  # root may write anywhere
    (tmp_path / "closed").mkdir(mode=0o500)
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "closed" / "run")]) == 2
    assert "no permission in" in capsys.readouterr().err


def test_data_without_out_is_refused(drawn, capsys):
    assert main(["train", "--data", str(drawn)]) == 2
    assert "--out is needed with --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--batch-size", "1"], "batch_size must be at least 2"),
        (["--lr", "-1"], "lr must be above 0"),
        (["--lr", "nan"], "lr must be above 0"),
        (["--arch", "resnet19"], "torchvision has no classifier 'resnet19'; near: resnet1"),
        (["--arch", "vit_b_16", "--cbam", "none"], "takes no images of 32 x 32 pixels"),
        (["--arch", "vgg11", "--cbam", "in_block"], "the preset 'in_block' does not fit VGG"),
        (["--cbam", "layer1,layr2"], "the model has no sub-module 'layr2'; the nearest names are layer2"),
        (["--cbam", "none", "--cbam-init", "identity"], "cbam_init is identity, but cbam is none"),
        (["--freeze", "backbone", "--unfreeze", "2:layer9"], "unfreeze: freeze_except: the model has no sub-module"),
        (["--unfreeze", "2:layer4"], "unfreeze needs freeze"),
        (["--train-sizes", "3:64", "2:96"], "each epoch once, in their order, got 3:64 2:96"),
        (["--train-sizes", "1:16"], "sides of at least 32, got '16'"),
        (["--pretrained", "--weights", "x.pt"], "pretrained and weights exclude each other"),
        (["--weights", "gone.pt"], "gone.pt holds no weights: FileNotFoundError"),
        (["--arch", "vgg11", "--zero-init-residual"], "vgg11 is not a ResNet"),
        (["--warmup-epochs", "3", "--epochs", "4"], "warmup_epochs must be at most 2, half of epochs, got 3"),
        (["--warmup-epochs", "0.6", "--epochs", "1"], "warmup_epochs must be at most 0.5, half of epochs, got 0.6"),
        (["--config", str(FROM_SCRATCH), "--epochs", "3"], "warmup_epochs must be at most 1.5, half of epochs, got 6"),
    ],
)
def test_settings_that_do_not_work_are_refused_before_anything_is_written(drawn, tmp_path, capsys, option, message):
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "run"), "--image-size", "32", *option]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--schedule", "cosin"], ["--epochs", "many"], ["--unknown", "1"]])
def test_options_that_do_not_exist_are_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", *option])
    assert option[0] in capsys.readouterr().err


def test_a_backend_that_does_not_exist_is_refused(run, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(routing, "wanted", "gpu")
    train = ["train", "--data", str(drawn), "--out", str(tmp_path / "run")]
    for command in (train, ["predict", "--run", str(run), str(drawn)]):
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("error: CBAM_FUSED_BACKEND must be auto, cpu, cuda, triton or ref")
    assert not (tmp_path / "run").exists()


def test_without_the_packages_of_the_extra_it_names_the_extra():
    script = "import runpy, sys; sys.modules['torchvision'] = None; runpy.run_path('train_example.py')"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.fullmatch(r"error: .*torchvision.*; pip install '\.\[train\]'\n", result.stderr)


def test_a_diverging_run_says_so(drawn, tmp_path, capsys):
    assert main(["train", "--data", str(drawn), "--out", str(tmp_path / "run"), *SMALL, "--lr", "1e30"]) == 1
    assert "the training loss is" in capsys.readouterr().err
