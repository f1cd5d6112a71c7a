"""A signature is the schema: holds a config against the classes it names, before anything is built."""

import inspect
import os
import types
import typing
from collections.abc import Mapping
from typing import Any

from recur.cli import nearest

_PLAIN = (bool, int, float, str, type(None))


def check(node: Any, path: str) -> None:
    """Compare every key and plain value under `node` with the signature of its `_target_`.

    Args:
        node: a composed config, plain containers.
        path: where it stands in the whole, for the messages.

    Raises:
        ValueError: a `_target_` that does not exist, a key its signature lacks, or a value of another type.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, path)
        for key, value in node.items():
            check(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            check(value, f"{path}[{index}]")


def _check_call(node: Mapping[str, Any], path: str) -> None:
    from hydra.utils import get_object

    target = node["_target_"]
    try:
        called = get_object(str(target))
        signature = inspect.signature(called)
    except Exception as error:
        raise ValueError(f"{path}._target_={target} names nothing that can be called: {error}") from None
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    hints = _hints(called)
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        if key not in signature.parameters:
            if open_ended:
                continue
            known = [name for name in signature.parameters if name != "self"]
            raise ValueError(f"{path}.{key}: {target} takes no such key{nearest(str(key), known)}")
        wanted = hints.get(str(key), Any)
        if isinstance(value, _PLAIN) and not _fits(value, wanted):
            raise ValueError(f"{path}.{key} must be {_spelled(wanted)}, got {value!r}")


def _hints(called: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (NameError, TypeError, AttributeError):
        return {}  # a library's own forward references; its own checks must do


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a plain value (null, true, number, word) may stand where this type is wanted."""
    origin = typing.get_origin(wanted) or wanted
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(wanted))
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    if origin is Any or not inspect.isclass(origin) or getattr(origin, "_is_protocol", False):
        return True  # Any, a type variable, ...: nothing is known
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str):
        return origin is str or issubclass(origin, os.PathLike)
    return isinstance(value, origin)


def _spelled(wanted: Any) -> str:
    union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    parts = typing.get_args(wanted) if union else (wanted,)
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}
    return " or ".join(names.get(part, getattr(part, "__name__", str(part))) for part in parts)
