"""Settings as words of a command line: their values in Hydra's grammar, and those that a later command says again."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from recur.errors import UserError
from recur.runs.trust import to_say_again


def quoted(path: str) -> str:
    """A path as Hydra's override grammar reads it."""
    return path if re.fullmatch(r"[\w./\-:+@%]+", path, re.ASCII) else in_quotes(path)


def in_quotes(text: str) -> str:
    """A text in quotes, as Hydra's override grammar reads it: there it is a text, even where it looks like a number.

    Within quotes Hydra takes a backslash for itself, unless backslashes are all that stands between it and a quote.
    """
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
    return "'" + re.sub(r"\\+\Z", lambda match: match[0] * 2, escaped) + "'"


def as_text(text: str) -> str:
    """A text as Hydra's override grammar reads it: in quotes where it would be a number, a truth value or null."""
    word = quoted(text)
    return word if isinstance(OverridesParser.create().parse_override(f"key={word}").value(), str) else in_quotes(text)


def as_value(value: Any) -> str:
    """A value as Hydra's override grammar reads it; a text stays one: "2024" is no number."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_as_key(name)}: {as_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_value, value)) + "]"
    return as_text(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else quoted(str(value))


def _as_key(name: Any) -> str:
    """A key of a mapping as Hydra's override grammar reads it, which knows no quotes there.

    Raises:
        UserError: a text that it would read as something else.
    """
    if not isinstance(name, str):
        return as_value(name)
    word = re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", name)
    read: Any = None
    with contextlib.suppress(HydraException):
        value: Any = OverridesParser.create().parse_override(f"key={{{word}: 0}}").value()
        (read,) = value
    same = str(read).lower() == name.lower() if isinstance(read, bool) else str(read) == name and read is not None
    if not same:
        raise UserError(name, rule="cannot be a key on a command line", remedy="write it in a YAML file of configs")
    return word


def said_again(cfg: DictConfig, resolved: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The settings, path to value, that a command which goes on with a run has to say again.

    Args:
        cfg: the config of the command that begins the run; see `recur.runs.trust.to_say_again`.
        resolved: the same in plain containers.
        folder: of the run.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    again = {}
    for key, value in to_say_again(raw, resolved, folder).items():
        with contextlib.suppress(UserError):  # no command line can say it
            again[key] = as_value(value)
    return again
