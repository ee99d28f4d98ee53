"""The garbage classifier: compare."""

import json
import math

import pytest
import torch
from garbage_runs import SMALL, files_below, read_log
from PIL import Image

from cbam_fused.ops import registry
from garbage import Interrupted
from garbage.run.folder import load_run
from garbage.train import compare
from garbage.train.compare import summarise
from train_example import main


def log(losses, seconds, accuracies=(0.5, 0.75, 0.75)):
    return [
        {
            "epoch": e,
            "train_loss": loss,
            "val_loss": 2 * loss,
            "val_accuracy": accuracy,
            "seconds": s,
            "images_per_second": 100 / s,
        }
        for e, (loss, s, accuracy) in enumerate(zip(losses, seconds, accuracies, strict=True), 1)
    ]


def test_what_is_summarised():
    records = {
        "none": log([3, 2, 1], [9, 4, 4]),
        "reference": log([3, 2, 1.5], [5, 6, 5]),
        "fused": log([3, 2.25, 1.25], [4, 4.5, 4.2])[:3],
    }
    result = summarise(records)
    assert result["runs"]["none"] == {
        "val_accuracy": 0.75,
        "val_loss": 2,
        "best_epoch": 3,
        "seconds_per_epoch": 4,
        "images_per_second": 25,
    }
    assert result["cbam_tax"] == pytest.approx({"reference": 0.25, "fused": 0.05})
    largest = result["largest_difference"]
    assert largest["train_loss"] == {"value": 0.25, "epoch": 3, "reference": 1.5}
    assert largest["val_loss"] == {"value": 0.5, "epoch": 3, "reference": 3}


def test_a_run_that_stopped_early_is_compared_as_far_as_it_went():
    records = {"none": log([3, 2, 1], [4, 4, 4]), "reference": log([3, 2, 1], [4, 4, 4])}
    records["fused"] = log([3, 1, 9], [4, 4, 4])[:2]
    assert summarise(records)["largest_difference"]["train_loss"] == {"value": 1, "epoch": 2, "reference": 2}


@pytest.fixture(scope="module")
def compared(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    assert main(["compare", "--data", str(drawn), "--out", str(out), *SMALL, "--epochs", "1"]) == 0
    return out


def test_three_runs_with_their_reports(compared):
    assert {p.name for p in compared.iterdir()} == {"none", "reference", "fused", "comparison.json", "comparison.png"}
    for name in ("none", "reference", "fused"):
        assert (compared / name / "report.html").exists()
        config = json.loads((compared / name / "config.json").read_text())
        assert config["cbam"] == ("none" if name == "none" else "each_layer") and config["seed"] == 0
        assert name == "none" or config["backend"] == name
    states = {name: load_run(compared / name)[1]["state_dict"] for name in ("none", "reference", "fused")}
    assert states["none"].keys() < states["fused"].keys() == states["reference"].keys()
    with Image.open(compared / "comparison.png") as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_the_json_is_of_the_logs(compared):
    result = json.loads((compared / "comparison.json").read_text())
    logs = {name: read_log(compared / name) for name in result["runs"]}
    assert list(logs) == ["none", "reference", "fused"]
    assert {k: result[k] for k in ("runs", "cbam_tax", "largest_difference")} == summarise(logs)
    assert result["settings"]["epochs"] == 1
    assert all(math.isfinite(tax) for tax in result["cbam_tax"].values())


@pytest.mark.skipif(bool(registry.cpu_missing), reason=f"nothing to compare: {registry.cpu_missing}")
def test_both_backends_train_alike_but_are_two(compared):
    """The first steps; later ones differ by float32 rounding, which the command shows."""
    result = json.loads((compared / "comparison.json").read_text())
    difference = result["largest_difference"]["train_loss"]
    assert difference["value"] < 1e-3 * difference["reference"]
    fused, reference = (load_run(compared / name)[1]["state_dict"] for name in ("fused", "reference"))
    assert any(not torch.equal(fused[k], reference[k]) for k in fused), "one backend trained twice"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "fused"], "compare trains with both backends: leave out --backend"),
        (["--cbam", "none"], "--cbam must not be none"),
        (["--data", "gone"], "is not a folder"),
    ],
)
def test_bad_input_is_refused(drawn, tmp_path, capsys, options, message):
    data = [] if "--data" in options else ["--data", str(drawn)]
    assert main(["compare", *data, "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stopped_comparison_does_not_advise_to_go_on(drawn, tmp_path, monkeypatch, capsys):
    def stop(settings, images, run):
        raise Interrupted("go on")

    monkeypatch.setattr(compare, "train", stop)
    assert main(["compare", "--data", str(drawn), "--out", str(tmp_path / "out"), *SMALL]) == 130
    wanted = f"stopped in {tmp_path / 'out' / 'none'}; a comparison cannot resume: start it again\n"
    assert capsys.readouterr().err == wanted


def test_a_finished_comparison_is_not_overwritten(compared, drawn, capsys):
    before = files_below(compared)
    assert main(["compare", "--data", str(drawn), "--out", str(compared), *SMALL]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert files_below(compared) == before
