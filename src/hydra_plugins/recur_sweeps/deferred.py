"""Makes a launcher or a sweeper when it is needed."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any


def make(target: str, key: str, settings: Mapping[str, Any]) -> Any:
    """An object of the class named `target`.

    Args:
        target: module and class.
        key: where the settings stand in the config.
        settings: arguments of the class.

    Raises:
        UserError: the class takes no such setting, or refuses its value.
    """
    from recur.errors import UserError

    module, _, name = target.rpartition(".")
    made = getattr(importlib.import_module(module), name)
    known = inspect.signature(made).parameters
    for setting in settings:
        if setting not in known:
            raise UserError(f"{key}.{setting}", rule=f"is no setting: there are {', '.join(known)}")
    return made(**settings)
