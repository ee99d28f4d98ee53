"""Predictions and their metrics, against hand counts."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from matplotlib.cbook import STEP_LOOKUP_MAP

from garbage import InputError
from garbage.report.metrics import BINS, MACRO, MICRO, calibration_bins, compute_metrics
from garbage.report.plots import pr_figure, roc_figure
from garbage.report.predictions import Predictions, read_predictions, write_predictions


def random_predictions(images=60, classes=4, present=4) -> Predictions:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(images) % present
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 1
    return Predictions(3, list("abcdefgh"[:classes]), [f"{i}.png" for i in range(images)], labels, logits.softmax(1))


def test_counts_by_hand():
    """Ten images: of four a, one is predicted b and one c; all three b are right; of three c, one is predicted b."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    said = torch.tensor([0, 0, 1, 2, 1, 1, 1, 2, 2, 1])
    probabilities = torch.full((10, 3), 0.2)
    probabilities[torch.arange(10), said] = 0.6
    metrics = compute_metrics(Predictions(1, ["a", "b", "c"], list("0123456789"), labels, probabilities))
    assert metrics.confusion.tolist() == [[2, 1, 1], [0, 3, 0], [0, 1, 2]] and metrics.support.tolist() == [4, 3, 3]
    assert metrics.per_class["precision"].tolist() == pytest.approx([1, 3 / 5, 2 / 3])
    assert metrics.per_class["recall"].tolist() == pytest.approx([2 / 4, 1, 2 / 3])
    assert metrics.per_class["specificity"].tolist() == pytest.approx([1, 5 / 7, 6 / 7])
    assert metrics.per_class["f1"].tolist() == pytest.approx([2 / 3, 3 / 4, 2 / 3])
    overall = metrics.overall
    assert overall["accuracy"] == pytest.approx(0.7) and overall["macro_recall"] == pytest.approx((0.5 + 1 + 2 / 3) / 3)
    assert overall["negative_log_likelihood"] == pytest.approx(-0.7 * math.log(0.6) - 0.3 * math.log(0.2))
    assert overall["calibration_error"] == pytest.approx(0.1)  # every confidence is 0.6


def test_areas_below_the_curves():
    """AUC is the fraction of ordered (positive, negative) pairs; AP is the mean precision at the positives."""
    predictions = random_predictions()
    metrics = compute_metrics(predictions)
    for k, name in enumerate(predictions.classes):
        scores = predictions.probabilities[:, k].tolist()
        positive = (predictions.labels == k).tolist()
        pairs = [(a, b) for (a, p), (b, q) in itertools.product(zip(scores, positive, strict=True), repeat=2) if p > q]
        assert metrics.auc[name] == pytest.approx(sum(a > b for a, b in pairs) / len(pairs))
        ranked = [p for _, p in sorted(zip(scores, positive, strict=True), reverse=True)]
        precisions = [sum(ranked[:i]) / i for i, p in enumerate(ranked, 1) if p]
        assert metrics.ap[name] == pytest.approx(sum(precisions) / len(precisions))


@pytest.mark.parametrize("ties", ["none", "some", "all"])
def test_drawn_curves_have_the_areas_of_the_legend(ties):
    predictions = random_predictions()
    p = predictions.probabilities
    if ties == "some":
        p[:, :3] = (p[:, :3] * 5).floor() / 5
        p[:, 3] = 1 - p[:, :3].sum(1)
    elif ties == "all":
        p.fill_(0.25)
    metrics = compute_metrics(predictions)
    for figure, areas in ((roc_figure(metrics), metrics.auc), (pr_figure(metrics), metrics.ap)):
        lines = figure.axes[0].lines[: len(areas)]
        for line, name in zip(lines, areas, strict=True):
            x, y = map(torch.as_tensor, STEP_LOOKUP_MAP[line.get_drawstyle()](*map(np.asarray, line.get_data())))
            assert abs(torch.trapezoid(y, x)) == pytest.approx(areas[name], abs=2e-3), line.get_label()


def test_a_class_without_images_is_left_out_of_the_means():
    metrics = compute_metrics(random_predictions(present=3))
    assert all(metrics.per_class[name][3].isnan() for name in ("precision", "recall", "f1", "auc", "ap"))
    assert metrics.per_class["specificity"][3] < 1, "it is taken for others' class"
    assert metrics.overall["macro_auc"] == pytest.approx(metrics.per_class["auc"][:3].mean().item())
    assert set(metrics.roc) == {"a", "b", "c", MICRO, MACRO} == set(metrics.ap)
    assert all(math.isfinite(v) for v in metrics.overall.values())


def test_a_class_of_all_images_has_no_negatives():
    metrics = compute_metrics(random_predictions(present=1))
    assert all(metrics.per_class[name][0].isnan() for name in ("specificity", "auc"))
    assert metrics.per_class["precision"][0] == metrics.per_class["ap"][0] == 1
    assert math.isnan(metrics.overall["macro_auc"]) and set(metrics.roc) == {MICRO}
    assert set(metrics.pr) == {"a", MICRO, MACRO}


def test_calibration_bins_give_the_calibration_error():
    """Also if confidences of 1, from a float32 softmax, share an interval with those just below."""
    predictions = random_predictions(images=200)
    predictions.probabilities[:20] = torch.eye(4)[0]
    predictions.probabilities[20:40] = torch.eye(4)[predictions.labels[20:40]] * 0.92 + 0.02
    confidences, right = predictions.confidences, predictions.predicted == predictions.labels
    edges = torch.linspace(0, 1, BINS + 1)
    count, confidence, accuracy = calibration_bins(predictions)
    error = 0.0
    for i in range(BINS):
        inside = (confidences > edges[i]) & (confidences <= edges[i + 1])
        assert count[i] == inside.sum()
        if count[i]:
            gap = confidences[inside].mean() - right[inside].float().mean()
            assert (confidence - accuracy)[i].item() == pytest.approx(gap.item(), abs=1e-6)
            error += (count[i] / 200 * gap.abs()).item()
    assert count.sum() == 200
    assert error == pytest.approx(compute_metrics(predictions).overall["calibration_error"], abs=1e-6)


def test_mistakes_come_with_the_most_confident_first():
    predictions = random_predictions()
    wrong = predictions.mistakes(1000)
    assert set(wrong) == {i for i in range(60) if predictions.predicted[i] != predictions.labels[i]} and len(wrong) > 5
    assert predictions.confidences[wrong].diff().max() <= 0
    assert predictions.mistakes(4) == wrong[:4]


def test_predictions_survive_the_file(tmp_path):
    predictions = random_predictions()
    write_predictions(predictions, tmp_path / "p.json")
    got = read_predictions(tmp_path / "p.json")
    assert (got.epoch, got.classes, got.files) == (3, predictions.classes, predictions.files)
    assert torch.equal(got.labels, predictions.labels) and torch.equal(got.probabilities, predictions.probabilities)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("labels"), "KeyError: 'labels'"),
        (lambda c: c["labels"].pop(), "60 files and 4 classes, but labels of shape (59,)"),
        (lambda c: c["probabilities"][0].pop(), "ValueError"),
        (lambda c: c["classes"].append("e"), "60 files and 5 classes"),
        (lambda c: c["labels"].__setitem__(0, 4), "labels from 0 to 4 for 4 classes"),
        (lambda c: c["probabilities"].__setitem__(0, [2, -1, 0, 0]), "do not add up to 1"),
        (lambda c: c["probabilities"].__setitem__(0, [1, 1, 1, 1]), "do not add up to 1"),
        (lambda c: c.update(files=[], labels=[], probabilities=[]), "it has no images"),
    ],
)
def test_damaged_predictions_are_refused(tmp_path, change, message):
    path = tmp_path / "val_predictions.json"
    write_predictions(random_predictions(), path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"val_predictions.json does not hold predictions") as error:
        read_predictions(path)
    assert message in str(error.value)


def test_missing_and_cut_off_predictions_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no val_predictions.json: no epoch of the run has finished"):
        read_predictions(tmp_path / "val_predictions.json")
    (tmp_path / "val_predictions.json").write_text('{"epoch": 1, "cl')
    with pytest.raises(InputError, match="does not hold predictions: JSONDecodeError"):
        read_predictions(tmp_path / "val_predictions.json")
