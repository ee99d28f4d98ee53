"""The garbage classifier: the files and folders that count, in every command."""

import json
import os
from pathlib import Path

import pytest
from garbage_runs import SMALL

from garbage.data.sources import files_below, find_images, subfolders
from train_example import main

pytestmark = pytest.mark.usefixtures("undrawn")

HIDDEN_FOLDERS = (".ipynb_checkpoints", "__MACOSX", ".git/x", "@eaDir", "a/.thumbnails", "$RECYCLE.BIN")
HIDDEN_FILES = ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".0.png", "a/._1.png")


def _files(picture: bytes, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture + str(path).encode())


@pytest.fixture
def folder(drawn, tmp_path) -> Path:
    """Two classes with 5 images that count, one of them linked, and many that do not; circular links."""
    picture = (drawn / "train" / "metal" / "0000.png").read_bytes()
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for name in ("battery", "metal"):
        _files(picture, *(data / name / f"{i}.png" for i in range(3)), data / name / "deep" / "er" / "3.png")
        _files(picture, elsewhere / name / "4.png")
        (data / name / "more").symlink_to(elsewhere / name)
        (data / name / "again").symlink_to(data / name / "deep")
        (data / name / "circle").symlink_to(data / name)
        (elsewhere / name / "up").symlink_to(data)
        _files(picture, *(data / name / hidden / "0.png" for hidden in HIDDEN_FOLDERS))
        _files(picture, *(data / name / hidden for hidden in HIDDEN_FILES))
        _files(picture, *(data / hidden / "0.png" for hidden in HIDDEN_FOLDERS if "a/" not in hidden))
    return data


PATHS = ("0.png", "1.png", "2.png", "deep/er/3.png", "more/4.png")
COUNTED = {f"{name}/{path}" for name in ("battery", "metal") for path in PATHS}


def _relative(data: Path, paths: list[str]) -> list[str]:
    return sorted(Path(path).relative_to(data).as_posix() if os.path.isabs(path) else path for path in paths)


def test_every_command_sees_the_same_files(folder, run, tmp_path, capsys):
    out = {name: tmp_path / name for name in ("run", "inspect", "eval", "explain")}
    assert main(["train", "--data", str(folder), "--out", str(out["run"]), *SMALL]) == 0
    assert "2 classes, 8 images for training, 2 for validation" in capsys.readouterr().out
    assert main(["inspect", "--data", str(folder), "--out", str(out["inspect"])]) == 0
    inspection = json.loads((out["inspect"] / "inspection.json").read_text())
    assert main(["evaluate", "--run", str(out["run"]), str(folder), "--out", str(out["eval"])]) == 0
    evaluated = json.loads((out["eval"] / "evaluation.json").read_text())["files"]
    tables = ["--csv", str(tmp_path / "p.csv"), "--json", str(tmp_path / "p.json")]
    assert main(["predict", "--run", str(run), *tables, str(folder / "battery"), str(folder / "metal")]) == 0
    predicted = [image["path"] for image in json.loads((tmp_path / "p.json").read_text())["images"]]
    assert main(["explain", "--run", str(run), "--out", str(out["explain"]), str(folder / "battery")]) == 0
    explained = {
        path.relative_to(out["explain"]).with_suffix(".png").as_posix() for path in files_below(out["explain"])
    }
    for paths in (list(inspection["sizes"]), evaluated, predicted):
        assert _relative(folder, paths) == sorted(COUNTED)
    assert explained == set(PATHS)


def test_links_are_followed_once(drawn, tmp_path):
    picture = (drawn / "train" / "metal" / "0000.png").read_bytes()
    _files(picture, tmp_path / "z" / "0.png", tmp_path / "set" / "b" / "1.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "set" / "b")  # comes first by name: the folder itself is read
    (tmp_path / "set" / "link").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "self").symlink_to(tmp_path / "set" / "self")
    found = [path.relative_to(tmp_path / "set").as_posix() for path in files_below(tmp_path / "set")]
    assert found == ["self", "b/1.png", "link/0.png"]  # a link to nothing is named, as a file that cannot be read
    assert [path.name for path in subfolders(tmp_path / "set")] == ["a", "b", "link"]


def test_a_link_to_an_image_that_is_gone_is_named(two_classes, tmp_path, capsys):
    """As in tools that store large files elsewhere."""
    (two_classes / "shoes" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert main(["train", "--data", str(two_classes), "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert f"skipped {two_classes / 'shoes' / 'gone.png'}: FileNotFoundError" in capsys.readouterr().out


def test_a_hidden_folder_or_file_that_is_named_counts(drawn, tmp_path):
    picture = (drawn / "train" / "metal" / "0000.png").read_bytes()
    _files(picture, tmp_path / ".cache" / "0.png", tmp_path / ".cache" / ".1.png", tmp_path / "._2.png")
    images, passed_over = find_images([tmp_path / ".cache", tmp_path / "._2.png"])
    assert [path.name for path in images] == ["0.png", "._2.png"] and not passed_over


@pytest.mark.parametrize("split", [True, False])
def test_copies_that_validate_what_they_trained_are_found(drawn, tmp_path, capsys, split):
    picture = (drawn / "train" / "metal" / "0000.png").read_bytes()
    data = tmp_path / "data"
    if split:
        parts = [data / part / name for part in ("train", "val") for name in ("metal", "paper")]
        _files(picture, *(place / f"{i}.png" for place in parts for i in range(3)))
        (data / "val" / "metal" / "copy.png").write_bytes((data / "train" / "metal" / "0.png").read_bytes())
        (data / "train" / "paper" / "wrong.png").write_bytes((data / "train" / "metal" / "1.png").read_bytes())
        expected = "1 validation images and 1 training images are copies"
    else:
        _files(picture, *(data / name / f"{i}.png" for name in ("metal", "paper") for i in range(4)))
        for i in range(12):  # every fifth image validates
            (data / "metal" / f"copy{i}.png").write_bytes((data / "metal" / "0.png").read_bytes())
        expected = "validation images and 0 training images are copies"
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 0
    output = capsys.readouterr().out
    assert expected in output and "`inspect` lists them all" in output
