"""setup.py without a build: the names that it defines."""

import platform
import runpy
import sysconfig
from pathlib import Path

import setuptools

ROOT = Path(__file__).parents[2]


def run(monkeypatch, free_threaded: bool = False) -> dict:
    """What setup.py defines on x86-64; under "arguments" what it calls setup with."""
    arguments: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": int(free_threaded)}.get)
    monkeypatch.delenv("CBAM_FUSED_SANITIZE", raising=False)
    monkeypatch.syspath_prepend(str(ROOT / "_build"))
    return runpy.run_path(str(ROOT / "setup.py")) | {"arguments": arguments}
