"""The optional dependencies of sweeps: Optuna, Ray, submitit."""

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
        UserError: it is not installed; the message has a command that works from a checkout and from a wheel alike.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        wanted = " ".join(f"'{requirement}'" for requirement in requirements(extra))
        raise UserError(
            setting, rule=f"needs {module}, which is not installed", remedy=f"python -m pip install {wanted}"
        ) from None


def requirements(extra: str) -> list[str]:
    """What an extra of this package would install, as pip takes it."""
    texts = metadata.requires("recur") or []
    marker = re.compile(rf"""\s*;.*extra\s*==\s*['"]{extra}['"]""")
    return [marker.split(text)[0].strip() for text in texts if marker.search(text)]
