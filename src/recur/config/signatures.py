"""A signature is a schema: a value of a config, held against the annotation of the argument that it is for.

Limits stand in the signatures themselves, as metadata of `annotated_types`: `Annotated[int, Ge(1)]`. pydantic checks
them, in its strict mode: nothing is converted, so that "3" is no number and 1 is not true.
"""

import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any

import annotated_types
from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from recur.errors import UserError

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_NAMES = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}
_PLURAL = {int: "whole numbers", float: "numbers", str: "words"}
_LARGEST = 2**63  # beyond it no library can take a whole number


def hints(called: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each argument, metadata included; nothing where a library's cannot be evaluated."""
    function = called.__init__ if inspect.isclass(called) else called
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}  # a library's own forward references; its own checks must do


def parameters_of(called: Any) -> set[str]:
    """What a class takes; where it passes `**settings` on to its base, also what that takes."""
    names: set[str] = set()
    for one in called.__mro__ if inspect.isclass(called) else (called,):
        parameters = inspect.signature(one).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Hold one value against an annotation.

    Args:
        key: the setting, for the message.
        value: null, true, a number, a word, a list or a mapping.
        annotation: of the argument.

    Raises:
        UserError: the value does not fit.
    """
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise UserError(key, rule=f"is too large a number: {value}")
    if isinstance(value, str) and "\0" in value:
        raise UserError(key, value, "must not hold a NUL character")
    adapter = _adapter(annotation)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except PydanticUserError:  # a name that cannot be found: nothing is known
        return
    except ValidationError:
        raise UserError(key, value, f"must be {in_words(annotation)}") from None


@cache
def _cached(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(_as_written(annotation), config=_STRICT)
    except (PydanticUserError, TypeError, NameError, AttributeError):
        return None  # nothing that pydantic knows about: what is called must check it


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return _cached(annotation)
    except TypeError:  # metadata that has no hash
        return _cached.__wrapped__(annotation)


def _as_written(annotation: Any) -> Any:
    """The annotation for values as YAML writes them: a path is a word, a tuple a list, a class or protocol anything."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return Annotated[(_as_written(arguments[0]), *arguments[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_as_written(part) for part in arguments)]  # noqa: UP007
    if origin is tuple:
        inner: Any = tuple(part if part is Ellipsis else _as_written(part) for part in arguments)
        return Annotated[tuple.__class_getitem__(inner), Strict(False)]
    if origin is not None and issubclass_safely(origin, Mapping) and arguments:
        return Mapping[_as_written(arguments[0]), _as_written(arguments[1])]  # type: ignore[misc]
    if inspect.isclass(annotation) and issubclass(annotation, os.PathLike):
        return str
    if getattr(annotation, "_is_protocol", False) or isinstance(annotation, typing.TypeVar):
        return Any
    return annotation


def issubclass_safely(one: Any, other: type) -> bool:
    """`issubclass` that takes anything."""
    return inspect.isclass(one) and issubclass(one, other)


def in_words(annotation: Any) -> str:
    """What an annotation asks for: `a whole number of at least 1 or null`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = [words for item in arguments[1:] for words in _limits(item)]
        words = " and ".join([*limits[:1], *(limit.removeprefix("of ") for limit in limits[1:])])
        return in_words(arguments[0]) + (f" {words}" if limits else "")
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in arguments)
    if origin is typing.Literal:
        return " or ".join("null" if value is None else str(value) for value in arguments)
    if origin is not None and issubclass_safely(origin, Mapping):
        return f"a mapping to {_PLURAL[arguments[1]]}" if arguments and arguments[1] in _PLURAL else "a mapping"
    if origin is tuple and arguments and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values"
    if origin in (list, tuple, set) or issubclass_safely(origin, typing.Sequence):
        return f"a list of {_PLURAL[arguments[0]]}" if arguments and arguments[0] in _PLURAL else "a list"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


_BOUNDS = (
    ("ge", annotated_types.Ge, "of at least"),
    ("gt", annotated_types.Gt, "above"),
    ("le", annotated_types.Le, "of at most"),
    ("lt", annotated_types.Lt, "below"),
)


def _limits(item: Any) -> list[str]:
    words = [
        "finite" if name == "lt" and getattr(item, name) == math.inf else f"{text} {getattr(item, name)}"
        for name, kind, text in _BOUNDS
        if isinstance(item, (kind, annotated_types.Interval)) and getattr(item, name) is not None
    ]
    if isinstance(item, annotated_types.MinLen):
        words.append(f"with at least {item.min_length} items")
    if getattr(item, "allow_inf_nan", None) is False:
        words.append("that is finite")
    return words
