"""The garbage classifier: evaluate."""

import json
import shutil

import pytest
import torch
from garbage_runs import files_below
from PIL import Image

from train_example import main

pytestmark = pytest.mark.usefixtures("undrawn")


def evaluate(run, folder, out):
    return main(["evaluate", "--run", str(run), str(folder), "--out", str(out)])


@pytest.mark.parametrize("nested", [True, False])
def test_it_repeats_the_validation_of_training(run, drawn, tmp_path, capsys, nested):
    checkpoint = run / "best.pt" if nested else run
    assert evaluate(checkpoint, drawn if nested else drawn / "val", tmp_path / "out") == 0
    best = torch.load(run / "best.pt", weights_only=True)["metrics"]
    expected = json.loads((run / "val_predictions.json").read_text())
    got = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert got["classes"] == expected["classes"] and got["labels"] == expected["labels"]
    assert [f.split("/")[-2:] for f in got["files"]] == [f.split("/")[-2:] for f in expected["files"]]
    for a, b in zip(got["probabilities"], expected["probabilities"], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["overall"] == pytest.approx(json.loads((run / "metrics.json").read_text())["overall"], abs=1e-4)
    output = capsys.readouterr().out
    assert f"accuracy {best['val_accuracy']:.2%}: " in output and "of 12 images" in output
    for name in ("battery", "white_glass", "precision", "recall", "specificity", "calibration error"):
        assert name in output
    names = {"evaluation.json", "metrics.json", "per_class.csv", "report.html", "roc.png", "precision_recall.png"}
    names |= {"confusion_matrix.png", "confusion_matrix_normalised.png", "calibration.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<svg class="gates"') == 24 and "Left out" not in page


@pytest.fixture
def folder(drawn, tmp_path):
    shutil.copytree(drawn / "val", tmp_path / "set")
    return tmp_path / "set"


def test_files_at_any_depth_and_unreadable_ones(run, folder, tmp_path, capsys):
    (folder / "metal" / "deep").mkdir()
    with Image.open(folder / "metal" / "0000.png") as image:
        image.save(folder / "metal" / "deep" / "a.gif")
    (folder / "metal" / "0000.png").unlink()
    (folder / "paper" / "0000.png").write_bytes(b"broken")
    assert evaluate(run, folder, tmp_path / "out") == 0
    assert f"skipped {folder / 'paper' / '0000.png'}: UnidentifiedImageError" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(content["files"]) == 11 and "metal/deep/a.gif" in content["files"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["per_class"]["paper"]["recall"] is None


def test_other_classes_are_refused_with_the_differences_named(run, folder, tmp_path, capsys):
    (folder / "metal").rename(folder / "metall")
    shutil.rmtree(folder / "shoes")
    assert evaluate(run, folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{folder} does not have the classes of the checkpoint" in error
    assert "has no folder for metal, shoes and has metall, which the network does not know" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_refused(run, folder, tmp_path, capsys):
    for path in folder.rglob("*.png"):
        path.unlink()
    assert evaluate(run, folder, tmp_path / "out") == 2
    assert f"no image in {folder} can be read" in capsys.readouterr().err
    assert evaluate(run, folder / "gone", tmp_path / "out") == 2
    assert "gone is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_report_of_a_run_is_not_overwritten(run, folder, capsys):
    before = files_below(run)
    assert evaluate(run, folder, run) == 2
    assert "whose report would be overwritten" in capsys.readouterr().err
    assert files_below(run) == before


def test_results_never_go_among_the_images(run, folder, capsys):
    before = files_below(folder)
    for source in (folder, folder.parent):
        assert evaluate(run, source, folder / "results") == 2
        assert f"lies in {folder}, where the images are; name another folder" in capsys.readouterr().err
        folder = folder.rename(folder.with_name("val"))
    assert files_below(folder) == before


def test_any_checkpoint_of_the_program_may_be_moved(run, folder, tmp_path):
    """A checkpoint without its run, on photos of another size."""
    moved = tmp_path / "model.pt"
    shutil.copy(run / "best.pt", moved)
    with Image.open(folder / "metal" / "0000.png") as image:
        image.resize((300, 200)).save(folder / "metal" / "0000.png")
    assert main(["evaluate", "--run", str(moved), str(folder)]) == 0
    assert (tmp_path / "evaluation-set" / "report.html").exists()
