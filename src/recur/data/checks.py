"""Limits on settings that both data modules share. Keys are given as a user types them, below `data`."""

from collections.abc import Mapping
from typing import Any, Literal

from recur.errors import UserError, nearest

OnBadRow = Literal["error", "skip"]
Column = str | int  # a name, or a number from 1 in a csv or tsv file without a line of names


def whole_number(key: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuse what is no whole number from `least` to `most`.

    Raises:
        UserError: with the key below `data`.
    """
    within = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not within or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise UserError(f"data.{key}", value, f"must be a whole number {limits}")


def one_of(key: str, value: Any, *allowed: str) -> None:
    """Refuse what is none of the words.

    Raises:
        UserError: with the key below `data`.
    """
    if value not in allowed:
        raise UserError(f"data.{key}", value, f"must be {', '.join(allowed[:-1])} or {allowed[-1]}")


def columns(**named: Column) -> None:
    """Refuse columns that are neither names nor numbers, two settings that name the same column, and a mixture.

    Raises:
        UserError: with the key below `data`.
    """
    for key, column in named.items():
        if isinstance(column, int):
            whole_number(key, column)
        elif not isinstance(column, str) or not column:
            raise UserError(f"data.{key}", column, "must be the name of a column, or its number from 1")
    if len({isinstance(column, int) for column in named.values()}) > 1:
        raise UserError(f"data.{next(iter(named))}", rule="and data.label_column must both be names or both be numbers")
    seen: dict[Column, str] = {}
    for key, column in named.items():
        if column in seen:
            raise UserError(f"data.{key}", column, f"must be another column than data.{seen[column]}")
        seen[column] = key


def known_keys(key: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse a key of a mapping that is not known.

    Raises:
        UserError: with the key below `data`.
    """
    unknown = sorted(str(name) for name in set(given) - set(known))
    if unknown:
        hint = nearest(unknown[0], known).removeprefix(": ")
        raise UserError(
            f"data.{key}.{unknown[0]}", rule=f"is no setting of data.{key}, only {', '.join(known)}", remedy=hint
        )
