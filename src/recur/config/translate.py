"""Errors of Hydra, OmegaConf and YAML while a config is composed, as mistakes of the user who typed it."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from recur.config.settings import NOT_FOR_TRAINER
from recur.errors import ABSENT, UserError, nearest
from recur.runs.build import resolve


def composition_error(
    error: BaseException, overrides: Sequence[str], whole: Callable[[], dict[str, Any]]
) -> UserError | None:
    """What a user can fix, of an error raised while a config is composed; None for any other.

    Hydra meets some values that no config can have (a list or null for the name of a group, brackets a thousand deep)
    with a `TypeError`, an `AttributeError`, a `ValueError` or a `RecursionError` of its own code.

    Args:
        error: anything.
        overrides: as typed.
        whole: gives a config in which to look for the key that was meant.
    """
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _composition(error, whole)
    if isinstance(error, yaml.YAMLError):
        return UserError("", rule=f"a config is not YAML: {error}")
    if isinstance(error, RecursionError):
        typed = " ".join(overrides)[:80] or "the config"
        return UserError(
            "", rule=f"{typed}: a value there, or in a file that it names, is nested too deeply to be read"
        )
    if isinstance(error, (TypeError, AttributeError, ValueError)) and _package_of(error) in ("hydra", "omegaconf"):
        return UserError(" ".join(overrides), rule="cannot be composed", remedy=str(error))
    return None


def _missing(error: MissingConfigException) -> UserError:
    wanted = str(error.missing_cfg_file or "")
    options = [str(option) for option in error.options or []]
    group, _, option = wanted.rpartition("/")
    rule = f"there is no {group or 'config'} called {option!r}{nearest(option, options)}"
    return UserError("", rule=rule + (f"; {group} can be {', '.join(options)}" if options else ""))


def _composition(error: BaseException, whole: Callable[[], dict[str, Any]]) -> UserError:
    cause = error.__cause__
    for key_error in (cause, error):
        if isinstance(key_error, (ConfigAttributeError, ConfigKeyError)):
            return _unknown_key(key_error, whole)
    override = getattr(error, "override", None)  # of an override that cannot be parsed
    first, detail = _first_line(error), f" ({_first_line(cause)})" if cause else ""
    if override:
        key, _, value = str(override).partition("=")
        plain = re.fullmatch(r"[\w.+/-]+", key) and value and not set(value) & set("[]{}'\"")
        remedy = f"a text with such signs goes in two kinds of quotes, '{key}=\"{value}\"'" if plain else first
        return UserError(str(override), rule="cannot be read", remedy=remedy)
    if first.startswith("Ambiguous value"):
        word = first.partition("'")[2].rpartition("'")[0]
        key, _, value = word.partition("=")
        remedy = f"with -m these are several runs; '{key}=[{value}]' is a list, and '{key}=\"{value}\"' a text"
        return UserError(word, rule="has several values", remedy=remedy)
    return UserError("", rule=first + detail)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unknown_key(error: Any, whole: Callable[[], dict[str, Any]]) -> UserError:
    """A key that the config lacks: misspelt, the right one at a wrong place, or one that has to be added."""
    full, parent = str(error.full_key or error.key), error.parent_node
    if not isinstance(parent, DictConfig):
        return UserError("", rule=_first_line(error))
    prefix, _, key = full.rpartition(".")
    siblings = {str(name): f"{prefix}.{name!s}" if prefix else str(name) for name in parent}
    if full in NOT_FOR_TRAINER:
        return UserError(full, ABSENT, *NOT_FOR_TRAINER[full])
    if _takes(parent, key) or (prefix == "hydra.launcher.parameters" and not _resembles(key, siblings)):
        return UserError(full, rule="is not in the config", remedy=f"to add it, type +{full}=...")
    if close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.5):
        return UserError(full, rule="is no setting", remedy=f"did you mean {siblings[close[0]]}?")
    everywhere = _paths(whole())
    same = [path for path in everywhere if path.rpartition(".")[2] == key]
    hint = f": did you mean {same[0]}?" if same else nearest(full, everywhere)
    rule = hint or f"; {prefix or 'the config'} has {', '.join(siblings.values())} (a + before a key adds it)"
    return UserError(full, rule="is no setting" + rule)


def _resembles(key: str, others: Iterable[str]) -> bool:
    """Whether a key is one of the others with a slip of the pen."""
    return bool(difflib.get_close_matches(key, others, n=1, cutoff=0.85))


def _takes(node: DictConfig, key: str) -> bool:
    """Whether what a node names has such an argument, which its config leaves out."""
    target = node.get("_target_") if "_target_" in node else None
    try:
        return target is not None and key in inspect.signature(resolve(target)).parameters
    except (UserError, ValueError):
        return False


def _paths(node: Any, prefix: str = "") -> list[str]:
    """Every key of nested mappings, by its path."""
    paths = [prefix] if prefix else []
    for key, value in node.items() if isinstance(node, dict) else ():
        paths += _paths(value, f"{prefix}.{key}" if prefix else str(key))
    return paths


def _package_of(error: BaseException) -> str:
    """The package in whose code an error was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
