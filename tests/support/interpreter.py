"""A new Python interpreter."""

import os
import subprocess
import sys


def python(*arguments, cwd, **variables):
    """Output of a new interpreter with only the given variables of ours."""
    ours = ("CBAM_FUSED_BACKEND", "CBAM_FUSED_BUILD_SITE", "ATEN_CPU_CAPABILITY", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in ours} | variables
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout
