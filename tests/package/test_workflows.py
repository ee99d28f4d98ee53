"""The GitHub workflows and the build run what the Makefile has, and nothing of their own."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_targets(workflow):
    commands = re.findall(r"^\s*(?:- )?run: (.*)$", workflow.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        make, target = command.split()[:2]
        assert make == "make" and target in TARGETS, command


def test_every_phony_target_has_a_rule():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert rules >= TARGETS


def test_the_version_is_written_once():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    written = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    sources = [*(ROOT / "cbam_fused").rglob("*.py"), *(ROOT / "csrc").rglob("*.*"), ROOT / "setup.py"]
    assert not [path for path in sources if written.search(path.read_text())]
