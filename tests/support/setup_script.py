"""setup.py without a build, and the modules in _build: what they define."""

import platform
import runpy
import sys
import sysconfig
from pathlib import Path

import setuptools

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "_build"))

import build_kernels as build_kernels
import compiler as compiler
import environment as environment
import flags as flags
import ninja_file as ninja_file
import nvcc as nvcc


def run(monkeypatch, free_threaded: bool = False) -> dict:
    """What setup.py defines on x86-64; under "arguments" what it calls setup with."""
    arguments: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": int(free_threaded)}.get)
    return runpy.run_path(str(ROOT / "setup.py")) | {"arguments": arguments}
