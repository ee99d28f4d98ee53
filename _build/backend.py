"""PEP 517 build backend: setuptools, plus torch as a build requirement only if the target environment has none.

The kernels use the stable ABI of torch 2.10, so they compile against any torch from 2.10 on. A plain
`requires = ["torch"]` would download a second torch of several GB for every build.
"""

import environment
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks are setuptools' own


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def _torch_requirement():
    return [] if environment.find_torch() else [environment.TORCH_REQUIREMENT]
