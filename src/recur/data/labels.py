"""From label values, however a file spells them, to numbered classes."""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from recur.data.checks import Column
from recur.data.readers import Rows
from recur.data.text import utf8
from recur.errors import UserError

_DELIMITED = (".csv", ".tsv")

Names = list[str] | dict[str, str] | None  # names of the classes in order, or by label value
_MANY_CLASSES = 50
_WHOLE = re.compile(r"^(-?\d+)\.0+$")


def wanted_names(names: Sequence[str] | Mapping[Any, str] | None) -> Names:
    """The setting `data.class_names` in one of its two forms."""
    if isinstance(names, Mapping):
        named = {label_key(value): str(name) for value, name in names.items()}
        for value, name in names.items():
            if (word := str(value).lower()) in ("true", "false"):  # as YAML, JSON and csv have it
                named |= {spelled: str(name) for spelled in (word, word.title(), word.upper()) if spelled not in named}
        return named
    return None if names is None else [str(name) for name in names]


def label_key(value: Any) -> str:
    """One spelling for a label however its file holds it: 1, 1.0, " 1" and "1.0" are the same."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _WHOLE.sub(r"\1", str(value).strip())


def _shown(value: Any) -> str:
    """A label as its class is called: a text as it is written, a number in the shortest way."""
    return value.strip() if isinstance(value, str) else label_key(value)


def _number(key: str) -> int | None:
    try:
        return int(key)
    except ValueError:
        return None


def _reads_as_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def class_table(
    rows: Rows, column: Column, wanted: Names, kept: Sequence[Any] | None = None
) -> tuple[list[str], dict[str, int]]:
    """Names of the classes in order, and the class of each label value.

    Args:
        rows: of the training split.
        column: of labels.
        wanted: names that the user gives.
        kept: labels of the rows that are not left out; None for all.

    Raises:
        UserError: labels spelled in several ways, labels of too many values, fewer than two names, or names that are
            no valid Unicode.
    """
    values = rows.column(column, "data.label_column") if kept is None else kept
    if isinstance(wanted, dict):
        names = list(dict.fromkeys(wanted.values()))
    elif wanted is not None:
        names = wanted
    elif column in rows.class_names:
        names = rows.class_names[column]
    else:
        where = f"{rows.origins[0].file} column {column!r}"
        keys = _one_spelling(values, where)
        keys.discard("")
        if len(keys) > _MANY_CLASSES and len(keys) > len(values) / 10:
            raise UserError(
                where,
                rule=f"has {len(keys)} different values in {len(values)} rows",
                remedy="is it the column of labels? Set data.label_column",
            )
        folded: dict[str, str] = {}
        for key in sorted(keys):
            if (other := folded.setdefault(_folded(key), key)) != key:
                remedy = f"or name the classes: data.class_names={{{other}: {key}, {key}: {key}, ...}}"
                spelled = f"{other!r} and {key!r}"
                if normalize("NFC", other) == normalize("NFC", key):  # they look the same
                    remedy, spelled = "in the form NFC of Unicode, as most programs do", f"{other!a} and {key!a}"
                raise UserError(where, rule=f"spells one label as {spelled}", remedy=f"write it in one way, {remedy}")
        names = _ordered(keys)
    given = wanted is not None or column in rows.class_names  # spoilt labels of rows are reported with their rows
    if given and (spoilt := next((name for name in names if utf8(name) != name), None)) is not None:
        setting = f"{rows.origins[0].file} column {column!r}" if wanted is None else "data.class_names"
        raise UserError(setting, spoilt, "must have names of valid Unicode, without lone surrogates")
    if len(set(map(label_key, names))) < max(
        2 if wanted else 0, len(names)
    ):  # one label in all rows is noticed with the rows
        raise UserError("data.class_names", names, "must be two different names or more")
    return names, table_of(names, rows, column, wanted)


def _folded(key: str) -> str:
    """One text for all spellings that differ by case or by how Unicode composes a letter."""
    return normalize("NFD", normalize("NFD", key).casefold())


def _ordered(keys: Set[str]) -> list[str]:
    """Numbers by their values where all labels are numbers, else texts as texts are sorted."""
    if all(_number(key) is not None for key in keys):
        return sorted(keys, key=int)
    if all(map(_reads_as_number, keys)):
        return sorted(keys, key=lambda key: (float(key), key))  # long numbers may be equal as floats
    return sorted(keys)


def _one_spelling(values: Sequence[Any], where: str) -> set[str]:
    """The labels as their classes are called.

    Raises:
        UserError: the same label is spelled as 1, 1.0 or "1" in different rows: which of them are meant to be equal?
    """
    spelled: dict[float | str, Any] = {}
    for value in dict.fromkeys((type(value), value) for value in values if isinstance(value, str | int | float)):
        label = value[1]
        if label != label:
            continue
        same: float | str = label_key(label)
        with contextlib.suppress(ValueError, OverflowError):
            same = float(label)
            same = int(label_key(label))  # exact, where a float holds no more than 16 digits
        other = spelled.setdefault(same, label)
        if (type(other), str(other).strip()) != (type(label), str(label).strip()):
            raise UserError(where, rule=f"spells one label as {other!r} and {label!r}", remedy="write it in one way")
    return {_shown(label) for label in spelled.values()}


def table_of(names: list[str], rows: Rows, column: Column, wanted: Names) -> dict[str, int]:
    """Class of each label value that has one.

    A label is a class's name. Where the source lists the names of its classes, as the `datasets` library does, a number
    is a place in that list, even where the names are numbers themselves. Elsewhere it is a class's number from 0,
    unless one of the names is a number, which would then have two meanings.
    """
    if isinstance(wanted, dict):
        return {key: names.index(name) for key, name in wanted.items() if name in names}
    table = {label_key(name): index for index, name in enumerate(names)}
    source = rows.class_names.get(column, [])
    if source and set(source) & set(names):
        places = {str(place): names.index(name) for place, name in enumerate(source) if name in names}
    elif source or not any(map(_reads_as_number, names)):
        places = {str(index): index for index in range(len(names))}  # with a source: the user's names for its classes
    else:
        places = {}
    values = rows.columns.get(column, [])
    typed = any(type(value) in (int, float) for value in values)
    file = rows.origins[0].file if rows.origins else ""
    if source and not typed and file.lower().endswith(_DELIMITED):  # in which every value is a text
        given = [str(value).strip() for value in values if value not in (None, "")]
        typed = bool(given) and all(value.lstrip("+-").isdecimal() for value in given)
    if source and typed:
        return {key: index for key, index in table.items() if not _reads_as_number(key)} | places
    return table | {key: index for key, index in places.items() if key not in table}


def are_secret(rows: Rows, column: Column, table: Mapping[str, int]) -> bool:
    """Whether no row has a label: there is no such column, or one value, none or -1, that is no class, in every row.

    Args:
        rows: as read.
        column: of labels.
        table: class of each label value that has one.
    """
    values = rows.columns.get(column, [])
    labels = {label_key(value) for value in values if isinstance(value, str | int | float) and value == value}
    return len(labels) <= 1 and labels.isdisjoint(table) and len(rows.broken) < len(rows)


def carved(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Rows to carve off, `(rows,)`: the same share of each class, at least one where a class has two."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        chosen[random.permutation(members)[:count]] = True
    return chosen


def parted(labels: NDArray[np.int64], shares: Mapping[str, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Rows of each part carved off, by name, and those that remain, `train`; see `carved`.

    Raises:
        UserError: one of them would have none.
    """
    rows, left = np.arange(len(labels)), 1.0
    parts = {}
    for name, share in shares.items():
        chosen = carved(labels[rows], share / left, seed)
        parts[name], rows = rows[chosen], rows[~chosen]
        left -= share
    for name, share in shares.items():
        if not (len(parts[name]) and len(rows)):
            rule = f"must leave rows to train on and for {name}, of {len(labels)} rows"
            raise UserError(f"data.{name}_fraction", share, rule, f"name a split or file in data.{name}")
    return {**parts, "train": rows}
