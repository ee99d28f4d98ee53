"""The report of a run: from its log and predictions, with photos and attention maps if available."""

import csv
import json
import re
import shutil

import pytest
import torch
from garbage_runs import files_below, read_log, synthetic_run
from PIL import Image

from cbam_fused import routing
from garbage.model import classifier
from garbage.report.metrics import compute_metrics
from garbage.report.plots import roc_figure
from garbage.report.predictions import read_predictions
from garbage.report.tables import LOG_NAMES
from garbage.report.write import write_report
from train_example import main

PLOTS = ("curves", "confusion_matrix", "confusion_matrix_normalised", "roc", "precision_recall", "calibration")

RECORD = json.dumps({"epoch": 1} | dict.fromkeys(list(LOG_NAMES)[1:], 0.5))


@pytest.fixture
def bare(tmp_path):
    return synthetic_run(tmp_path)


def test_log_and_predictions_are_enough(bare):
    best = write_report(bare)
    assert best == read_log(bare)[3]
    written = {f"{name}.png" for name in PLOTS} | {"report.html", "metrics.json", "per_class.csv"}
    assert {p.name for p in bare.iterdir()} == written | {"log.jsonl", "val_predictions.json"}
    for name in PLOTS:
        with Image.open(bare / f"{name}.png") as image:
            image.load()
            assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 50
    page = (bare / "report.html").read_text()
    assert f"<dd>{best['val_accuracy']:.1%}</dd>" in page and "4 of 5" in page
    assert "none of the photos is there any more" in page and "Left out: the run has no best.pt" in page
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:|#)', page)

    metrics = json.loads((bare / "metrics.json").read_text())
    assert metrics["overall"]["accuracy"] == pytest.approx(best["val_accuracy"])
    assert sum(map(sum, metrics["confusion_matrix"])) == 120
    with open(bare / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(metrics["per_class"]) == [f"class_{i}" for i in range(12)]
    for row in rows:
        expected = metrics["per_class"][row["class"]]
        assert {key: float(row[key]) for key in expected} == pytest.approx(expected, abs=1e-6)


def test_a_class_without_images_a_name_like_markup_and_no_mistakes(tmp_path):
    synthetic_run(tmp_path, classes=2, images=20)
    content = json.loads((tmp_path / "val_predictions.json").read_text())
    content["classes"] = ["<b>&amp;", "class_1", "unseen"]
    content["probabilities"] = [[*row, 0.0] for row in content["probabilities"]]
    content["labels"] = [row.index(max(row)) for row in content["probabilities"]]
    (tmp_path / "val_predictions.json").write_text(json.dumps(content))
    write_report(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["per_class"]["unseen"]["recall"] is None and metrics["per_class"]["unseen"]["images"] == 0
    page = (tmp_path / "report.html").read_text()
    assert "<td>n/a</td>" in page and "every image was classified correctly" in page
    assert "&lt;b&gt;&amp;amp;" in page and "<b>&amp;" not in page


def test_images_of_one_class_only(tmp_path):
    synthetic_run(tmp_path, classes=3, images=30)
    content = json.loads((tmp_path / "val_predictions.json").read_text())
    content["labels"] = [0] * 30
    (tmp_path / "val_predictions.json").write_text(json.dumps(content))
    write_report(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert metrics["overall"]["macro_auc"] is None and metrics["per_class"]["class_0"]["specificity"] is None
    assert metrics["per_class"]["class_0"]["precision"] == metrics["overall"]["macro_ap"] == 1
    page = (tmp_path / "report.html").read_text()
    assert "ROC curves, macro AUC n/a" in page and "<dd>n/a</dd>" in page
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page)


def test_a_path_among_the_settings_may_be_any_bytes(bare):
    config = {"arch": "resnet18", "cbam": "none", "data": None, "weights": "caf\udce9.pt"}
    (bare / "config.json").write_text(json.dumps(config))
    write_report(bare)
    assert r"<td>caf\udce9.pt</td>" in (bare / "report.html").read_text()


def test_a_name_like_a_table_cell(tmp_path):
    synthetic_run(tmp_path, classes=2, images=20)
    content = json.loads((tmp_path / "val_predictions.json").read_text())
    content["classes"] = ["a", "<td><b>"]
    content["probabilities"][0] = [0.0, 1.0]
    (tmp_path / "val_predictions.json").write_text(json.dumps(content))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<tr><th scope="row">a</th><td>&lt;td&gt;&lt;b&gt;</td>' in page and "<td><b>" not in page


def test_names_that_matplotlib_would_interpret(tmp_path):
    synthetic_run(tmp_path, classes=2, images=20)
    content = json.loads((tmp_path / "val_predictions.json").read_text())
    content["classes"] = ["a$_$", "_b"]
    (tmp_path / "val_predictions.json").write_text(json.dumps(content))
    write_report(tmp_path)
    figure = roc_figure(compute_metrics(read_predictions(tmp_path / "val_predictions.json")))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.split()[1] for label in labels] == ["a$_$", "_b", "micro", "macro"]


def test_many_classes(tmp_path):
    write_report(synthetic_run(tmp_path, classes=45, images=90))
    assert (tmp_path / "report.html").read_text().count('<th scope="row">class_') >= 45


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.jsonl", None, "is not a run: it has no log.jsonl"),
        ("log.jsonl", "", "log.jsonl is empty: no epoch of the run has finished"),
        ("log.jsonl", f'{RECORD}\n{{"epo', "line 2 of"),
        ("log.jsonl", "{}\n", "is not the record of an epoch: KeyError: 'epoch'"),
        ("log.jsonl", RECORD.replace("0.5", "null", 1), "record of an epoch: TypeError: val_accuracy is None"),
        ("log.jsonl", "[3]\n", "is not the record of an epoch: TypeError"),
        ("log.jsonl", RECORD, "has no epoch 4, which val_predictions.json is of"),
        ("val_predictions.json", None, "has no val_predictions.json"),
        (
            *("val_predictions.json", '{"epoch": 1, "classes": 3, "files": [], "labels": [], "probabilities": []}'),
            "does not hold predictions: TypeError: classes must be a list of texts",
        ),
        ("best.pt", "junk", "best.pt is not a checkpoint of this program"),
        ("config.json", "{", "config.json cannot be read: JSONDecodeError"),
        ("config.json", "{}", "config.json is not the config of a run: it lacks arch, cbam, data"),
        ("config.json", '{"arch": "", "cbam": "", "data": 5}', "a run: data must be a text or nothing, got 5"),
        (
            *("config.json", '{"arch": "", "cbam": "", "data": null, "environment": 5}'),
            "the config of a run: environment must be a table, got 5",
        ),
    ],
)
def test_with_files_missing_or_damaged_nothing_is_written(bare, capsys, name, content, message):
    if content is None:
        (bare / name).unlink()
    else:
        (bare / name).write_text(content)
    before = files_below(bare)
    assert main(["report", "--run", str(bare)]) == 2
    assert message in capsys.readouterr().err
    assert files_below(bare) == before


def test_the_command_prints_the_best_epoch(tmp_path, capsys):
    bare = synthetic_run(tmp_path, classes=2, images=20)
    assert main(["report", "--run", str(bare)]) == 0
    output = capsys.readouterr().out
    best = read_log(bare)[3]
    assert re.search(rf"validation accuracy\s+{best['val_accuracy']:.2%}", output) and "report.html" in output


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def test_photos_of_mistakes_and_attention_maps(run):
    page = (run / "report.html").read_text()
    predictions = json.loads((run / "val_predictions.json").read_text())
    said = [row.index(max(row)) for row in predictions["probabilities"]]
    wrong = sum(a != b for a, b in zip(said, predictions["labels"], strict=True))
    assert wrong and page.count('<b class="wrong">') == min(wrong, 24) and f"of {wrong} wrong predictions" in page
    assert page.count('<svg class="gates"') == 4 * 6 and "Left out" not in page
    assert all(f"<b>layer{i}.cbam</b>" in page for i in (1, 2, 3, 4))


def test_gates_that_do_nothing_are_named_in_words(copy):
    checkpoint = torch.load(copy / "best.pt", weights_only=True)
    checkpoint["state_dict"]["layer3.cbam.ca.fc1.weight"].abs_().neg_()  # after ReLUs all hidden units are 0
    torch.save(checkpoint, copy / "best.pt")
    write_report(copy)
    page = (copy / "report.html").read_text()
    assert "Gates that do not do their work" in page
    assert "<b>layer3.cbam</b> channel gate: constant over channels and over images, about 0.50" in page
    assert "smaller steps" in page


def test_attention_of_a_network_without_cbam_is_left_out(copy):
    checkpoint = torch.load(copy / "best.pt", weights_only=True)
    network = classifier.build_model("resnet18", 12, "none")
    torch.save(checkpoint | {"cbam": "none", "state_dict": network.state_dict()}, copy / "best.pt")
    write_report(copy)
    assert "Left out: the network has no CBAM" in (copy / "report.html").read_text()


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_kernels_of_a_gpu_that_training_demands_hinder_no_command_after_it(run, copy, drawn, monkeypatch, backend):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    image = str(drawn / "val" / "metal" / "0000.png")
    with routing.use_backend(backend):
        assert main(["report", "--run", str(copy)]) == 0
        for command in ("predict", "explain"):
            assert main([command, "--run", str(copy), image]) == 0
        assert main(["evaluate", "--run", str(copy), str(drawn)]) == 0
    assert (copy / "report.html").read_text().count('<svg class="gates"') == 4 * 6


def test_photos_that_have_moved_are_left_out(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"data": str(copy / "moved")}))
    content = json.loads((copy / "val_predictions.json").read_text())
    content["files"] = [f"val/{i}.png" for i in range(12)]
    (copy / "val_predictions.json").write_text(json.dumps(content))
    write_report(copy)
    page = (copy / "report.html").read_text()
    assert f"none of the photos is there any more, {copy / 'moved' / 'val'}" in page
    assert "Left out: none of the photos can be read" in page
