"""Shared functions of the tests of the garbage classifier; conftest.py has the fixtures."""

import json
from pathlib import Path

import numpy as np

REPO = Path(__file__).parents[2]
SMALL = ["--epochs", "2", "--image-size", "32", "--batch-size", "8"]


def read_log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def synthetic_run(run: Path, classes: int = 12, images: int = 120, epochs: int = 5) -> Path:
    """The log and the predictions of a fictitious run with best epoch 4; its files do not exist."""
    rng = np.random.default_rng(0)
    names = [f"class_{i}" for i in range(classes)]
    labels = np.arange(images) % classes
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    accuracy = (probabilities.argmax(1) == labels).mean().item()
    content = {
        "epoch": 4,
        "classes": names,
        "files": [f"val/{names[label]}/{i}.jpg" for i, label in enumerate(labels)],
        "labels": labels.tolist(),
        "probabilities": probabilities.tolist(),
    }
    (run / "val_predictions.json").write_text(json.dumps(content))
    records = [
        {
            "epoch": e,
            "lr": 0.05 / e,
            "train_loss": 2 / e,
            "train_accuracy": 1 - 0.9 / e,
            "val_loss": 2.2 / e,
            "val_accuracy": accuracy if e == 4 else accuracy / 2,
            "seconds": 12.0,
            "images_per_second": 95.0,
        }
        for e in range(1, epochs + 1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run
