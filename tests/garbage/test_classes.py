"""The garbage classifier: class folders, and parts of a split."""

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from garbage_runs import SMALL

from garbage.data.classes import role_of
from garbage.data.folders import load_folder
from garbage.train.state import fingerprint
from train_example import main

pytestmark = pytest.mark.usefixtures("undrawn")

CAFE = "caf\u00e9"


def place(picture: Path, *paths: str, root: Path) -> Path:
    """A folder with three copies of a picture, each with other bytes, at each of the paths."""
    for path in paths:
        (root / path).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (root / path / f"{i}.png").write_bytes(picture.read_bytes() + path.encode() + bytes([i]))
    return root


@pytest.fixture
def picture(drawn) -> Path:
    return drawn / "train" / "metal" / "0000.png"


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("TRAIN", "Val"),
        ("training", "validation"),
        ("Train", "valid"),
        ("train_set", "dev-set"),
        ("Training Data", "eval"),
        ("trainImages", "VALIDATION"),
    ],
)
def test_parts_have_usual_names_in_any_case(picture, tmp_path, train, val):
    folder = place(picture, *(f"{part}/{name}" for part in (train, val) for name in ("cat", "dog")), root=tmp_path)
    images = load_folder(folder, 32, 1)
    assert images.classes == ["cat", "dog"] and len(images.train) == len(images.val) == 6
    assert {path.parent.parent.name for path in images.val.paths} == {val}


@pytest.mark.parametrize("test", ["TEST", "testing", "test_images"])
def test_test_images_are_never_trained_on(picture, tmp_path, capsys, test):
    """With only train/ and test/, a part of train/ validates; evaluate uses test/."""
    data = place(picture, *(f"{part}/{n}" for part in ("TRAIN", test) for n in ("cat", "dog")), root=tmp_path / "data")
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 0
    output = capsys.readouterr().out
    assert f"not used for training: {test}/" in output
    assert "classes: cat, dog\n2 classes, 4 images for training, 2 for validation" in output
    assert json.loads((tmp_path / "run" / "class_indices.json").read_text()) == {"0": "cat", "1": "dog"}
    assert main(["evaluate", "--run", str(tmp_path / "run"), str(data), "--out", str(tmp_path / "eval")]) == 0
    assert "of 6 images" in capsys.readouterr().out
    files = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["files"]
    assert sorted(files) == sorted(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3))


def test_flat_test_images_hinder_nothing(picture, tmp_path):
    """As in competitions, without labels."""
    folder = place(picture, "train/cat", "train/dog", "test", root=tmp_path)
    assert load_folder(folder, 32, 1).classes == ["cat", "dog"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("a/cat", "a/dog", "b/cat", "b/dog"), "a/ and b/ of {0} hold the same folders (cat, dog)"),
        (("2023/cat", "2023/dog", "2024/dog", "2024/eel"), "2023/ and 2024/ of {0} hold the same folders (dog)"),
        (("fold1/Cat", "fold1/dog", "fold2/cat", "other"), "fold1/ and fold2/ of {0} hold the same folders (cat)"),
        (("seg_a/seg_a/cat", "seg_a/seg_a/dog", "seg_b/seg_b/cat", "seg_b/dog"), "hold the same folders (cat, dog)"),
        (("train/cat", "train/dog"), "has only one of train/ and val/"),
        (("TEST/cat", "TEST/dog", "bus"), "has only one of train/ and val/"),
        (("train", "test"), "train/ and test/ of {0} must hold class folders"),
        (("val", "train", "bus"), "must hold class folders"),
        (("train/cat", "train/dog", "Train/cat", "Train/dog", "val/cat", "val/dog"), "more than one part for train"),
        (("train/all/cat", "train/all/dog", "val/all/cat", "val/all/dog"), "(are the classes in {0}/train/all?)"),
        (("set/cat", "set/dog"), "holds only the class 'set' (are the classes in {0}/set?)"),
        (("train/x/cat", "train/x/dog", "train/y/cat", "val/x/cat", "val/y/cat"), "x/ and y/ of {0}/train hold"),
    ],
)
def test_folders_that_may_not_be_classes_are_refused(picture, tmp_path, capsys, paths, message, train):
    data = place(picture, *paths, root=tmp_path / "data")
    command = ["train", *SMALL] if train else ["inspect"]
    assert main([*command, "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert message.format(data) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_that_is_called_train_works_or_the_error_says_how(picture, tmp_path, capsys):
    data = place(picture, "train", "bus", "car", root=tmp_path / "flat")
    assert load_folder(data, 32, 1).classes == ["bus", "car", "train"]
    (data / "train" / "old").mkdir()  # beside most of its images
    shutil.copy(picture, data / "train" / "old")
    assert load_folder(data, 32, 1).classes == ["bus", "car", "train"]
    data = place(picture, "train/steam", "train/diesel", "bus", root=tmp_path / "deep")
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert f"for a class that is called so, put all class folders into {data / 'train'}" in capsys.readouterr().err
    names = ("train/steam", "train/diesel", "bus", "val")
    data = place(picture, *(f"{part}/{name}" for part in ("train", "val") for name in names), root=tmp_path / "split")
    assert load_folder(data, 32, 1).classes == ["bus", "train", "val"]


def test_sources_inside_classes_are_no_classes(picture, tmp_path):
    """Images at any depth below their class, if it has most of them directly or the folders differ."""
    data = place(picture, "cat", "cat/old", "dog", "dog/old", "eel/new", root=tmp_path)
    images = load_folder(data, 32, 1)
    assert images.classes == ["cat", "dog", "eel"] and len(images.train) + len(images.val) == 15


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Training-Set", "train"),
        ("VAL", "val"),
        ("val2017", "val"),
        ("dev", "val"),
        ("testset", "test"),
        ("test_images", "test"),
    ]
    + [(name, None) for name in ("trains", "contest", "values", "devices", "set", "images", "latest", "eel")],
)
def test_names_of_parts(name, role):
    assert role_of(name) == role


def forms(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)


def test_both_forms_of_a_name_are_one_class(picture, tmp_path, capsys):
    """NFD (macOS) and NFC names: in both parts, in one folder, in a test set, in the files of a run."""
    composed, decomposed = forms(CAFE)
    paths = (f"train/{decomposed}", f"train/{composed}", "train/tea", f"val/{composed}", "val/tea")
    data = place(picture, *paths, root=tmp_path / "data")
    out = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(out), *SMALL]) == 0
    assert "classes: café, tea\n2 classes, 9 images for training, 6 for validation" in capsys.readouterr().out
    assert json.loads((out / "class_indices.json").read_text()) == {"0": composed, "1": "tea"}
    tests = place(picture, decomposed, "tea", root=tmp_path / "tests")
    assert main(["evaluate", "--run", str(out), str(tests), "--out", str(tmp_path / "eval")]) == 0
    assert main(["predict", "--run", str(out), str(tests), "--csv", f"{tests}.csv", "--json", f"{tests}.json"]) == 0
    assert "of 6 images in folders named after a class" in capsys.readouterr().out
    explain = ["explain", "--run", str(out), str(tests), "--out", str(tmp_path / "maps"), "--class", decomposed]
    assert main(explain) == 0


def test_a_run_goes_on_with_names_of_another_form(picture, tmp_path):
    """A set copied from macOS: the same names, classes, order and split."""
    composed, decomposed = forms(CAFE)
    images = {}
    for form in forms(CAFE):
        data = place(picture, form, "cafz", root=tmp_path / str(len(form)))
        for path in (data / form).iterdir():
            path.rename(path.with_name(form + path.name))
        images[form] = load_folder(data, 32, 1)
    assert fingerprint(images[composed]) == fingerprint(images[decomposed])


def test_a_checkpoint_with_decomposed_names_knows_composed_ones(run, drawn, tmp_path):
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    composed, decomposed = forms(CAFE)
    checkpoint["classes"][3] = decomposed
    torch.save(checkpoint, tmp_path / "best.pt")
    shutil.copytree(drawn / "val", tmp_path / "set")
    (tmp_path / "set" / "cardboard").rename(tmp_path / "set" / composed)
    assert checkpoint["classes"][2] == "brown_glass" and main(
        ["evaluate", "--run", str(tmp_path / "best.pt"), str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    ) == 0  # fmt: skip


@pytest.mark.parametrize("empty", [True, False])
def test_a_test_set_without_some_classes_is_evaluated_on_the_others(run, drawn, tmp_path, capsys, empty):
    folder = tmp_path / "set"
    shutil.copytree(drawn / "val", folder)
    for name in ("metal", "shoes"):
        shutil.rmtree(folder / name)
        if empty:
            (folder / name).mkdir()
    assert main(["evaluate", "--run", str(run), str(folder), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert f"{folder} has no images of metal, shoes: the figures are those of the other 10 classes" in output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["per_class"]["metal"]["recall"] is None and metrics["per_class"]["paper"]["recall"] is not None
    assert len(json.loads((tmp_path / "out" / "evaluation.json").read_text())["files"]) == 10
