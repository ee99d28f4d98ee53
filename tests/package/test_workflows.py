"""The GitHub workflows and the build run targets of the Makefile only."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
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


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_every_commit_has_a_version_of_its_own(tmp_path):
    """So that pip upgrades to a newer commit."""
    author = ["-c", "user.name=A", "-c", "user.email=a@b.c"]

    def git(*arguments):
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def version() -> str:
        command = [sys.executable, "-m", "setuptools_scm"]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert version() == "0.1.0.dev0"  # without git
    git("init", "--quiet")
    git("add", "pyproject.toml")
    found = []
    for message in ("one", "two"):
        git("commit", "--quiet", "--allow-empty", "-m", message)
        found.append(version())
    assert found[0].startswith("0.1.0.dev1+g") and found[1].startswith("0.1.0.dev2+g")
    git("tag", "v0.2.0")
    assert version() == "0.2.0"
    git("commit", "--quiet", "--allow-empty", "-m", "three")
    assert version().startswith("0.2.1.dev1+g")


def test_the_version_is_written_once():
    """As a git tag; builds without git and without a tag have none."""
    assert not re.search(r"^version = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    version = importlib.metadata.version("cbam_fused").partition(".dev")[0]
    written = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.])")
    sources = [*(ROOT / "cbam_fused").rglob("*.py"), *(ROOT / "csrc").rglob("*.*"), ROOT / "setup.py"]
    assert not [path for path in sources if written.search(path.read_text())]
