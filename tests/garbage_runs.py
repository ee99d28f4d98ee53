"""What the tests of the garbage classifier share besides the fixtures in conftest.py."""

import json
from pathlib import Path

REPO = Path(__file__).parent.parent
SMALL = ["--epochs", "2", "--image-size", "32", "--batch-size", "8"]


def read_log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
