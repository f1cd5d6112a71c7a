"""The optional dependencies: what an extra of this package brings, and how to install it."""

import importlib
import re
from importlib import metadata
from typing import Any

from recur.errors import UserError


def require_extra(extra: str, module: str, setting: str) -> Any:
    """Import the module that an extra of this package brings.

    Args:
        extra: name in `[project.optional-dependencies]` of `pyproject.toml`.
        module: what to import.
        setting: the override that needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise lacks(extra, module, setting) from None


def lacks(extra: str, module: str, setting: str, otherwise: str = "") -> UserError:
    """The refusal of a setting that needs an extra, with a command that works from a checkout and from a wheel alike.

    Args:
        extra: name in `[project.optional-dependencies]` of `pyproject.toml`.
        module: what could not be imported.
        setting: the override that needs it.
        otherwise: what else can be done.
    """
    wanted = " ".join(f"'{requirement}'" for requirement in requirements(extra)) or f"'{module}'"
    remedy = f"python -m pip install {wanted}" + (f", or {otherwise}" if otherwise else "")
    return UserError(setting, rule=f"needs {module}, which is not installed", remedy=remedy)


def requirements(extra: str) -> list[str]:
    """What an extra of this package would install, as pip takes it."""
    try:
        texts = metadata.requires("recur") or []
    except metadata.PackageNotFoundError:  # run from its sources
        texts = []
    marker = re.compile(rf"""\s*;.*extra\s*==\s*['"]{extra}['"]""")
    return [marker.split(text)[0].strip() for text in texts if marker.search(text)]
