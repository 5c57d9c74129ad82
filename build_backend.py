"""setuptools' build backend, plus the torch that is already installed.

A build-isolated `pip install .` sees no installed package, and would download another torch (up to
3 GB) to compile against. Where the environment has a torch that will do, this backend lends it to
the build; where it has none, the build asks for one as usual.
"""

import site
import sys
from importlib.metadata import distributions

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

OLDEST_TORCH = (2, 10)


def folder_of_installed_torch() -> str | None:
    """The site-packages of the target environment, if it holds torch >= OLDEST_TORCH."""
    for folder in [*site.getsitepackages(), site.getusersitepackages()]:
        for torch in distributions(name="torch", path=[folder]):
            if tuple(map(int, torch.version.split(".")[:2])) >= OLDEST_TORCH:
                return folder
    return None


def torch_requirement() -> list[str]:
    """Puts the installed torch on the path; what to install for the build if there is none."""
    folder = folder_of_installed_torch()
    if folder is None:
        return ["torch>={}.{}".format(*OLDEST_TORCH)]
    if folder not in sys.path:
        sys.path.append(folder)  # last: setuptools and ninja stay those of the build environment
    return []


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + torch_requirement()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + torch_requirement()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    torch_requirement()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    torch_requirement()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
