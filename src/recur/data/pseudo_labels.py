"""Texts that a model labelled, with its probability of each class: rows as `python -m recur.predict --out` writes them.

Trained on beside labelled texts they are self-training (Scudder 1965; Xie et al. 2020): what the model, or several
averaged, thinks of texts without labels is the target of another. Probabilities say more than labels: a text of which
the model is unsure teaches little.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recur.data.cache import TokenCache
from recur.data.checks import OnBadRow
from recur.data.encoded import write_split
from recur.data.readers import DELIMITED, Rows, checked
from recur.data.sources import Source, Split, find_files, without
from recur.data.tables import Files, as_file, is_table
from recur.data.text import Tokenizer, lacks_tokens
from recur.errors import UserError

SPLIT = "pseudo_labelled"
TEXT = "text"  # the column that holds the text, whatever it was called in the file that was labelled
_KEY = f"data.{SPLIT}"
_MAPPING = "probabilities"
_REMEDY = "write the file with python -m recur.predict RUN --file TEXTS --out FILE.jsonl"
_GUARDED = re.compile(r"'+[=+@\t\r-]")
_SUM = 1e-3  # how far a row's probabilities may be from 1 in all


def columns(class_names: Sequence[str]) -> list[str]:
    """The columns to read: a mapping from class to probability, as JSON has it, or one column a class."""
    return [TEXT, _MAPPING, *_named(class_names)]


def _named(class_names: Sequence[str]) -> list[str]:
    return [f"{_MAPPING}.{name}" for name in class_names]


def find(files: Files, splits: Mapping[str, Source], cache: TokenCache) -> dict[str, Source]:
    """The split of the rows, and the training split less their files: what a model says is not what is true.

    Args:
        files: as the setting gives them.
        splits: those of labelled texts.
        cache: keeps a table.

    Raises:
        UserError: no such file, or no other to train on.
    """
    split = Split((as_file(files, _KEY, cache),)) if is_table(files) else find_files(files, key=_KEY)
    train = without(splits["train"], split.files, _KEY, "trained on with a model's probabilities alone")
    return {SPLIT: split, "train": train}


def write(
    folder: Path,
    source: Source,
    class_names: Sequence[str],
    tokenizer: Tokenizer,
    *,
    on_bad_row: OnBadRow,
    allow_pickle: bool,
) -> None:
    """Encode the texts, and write what `recur.data.encoded.Encoded` reads, with the probabilities as targets.

    Args:
        folder: of the cache's entry.
        source: of the rows.
        class_names: the classes, in order.
        tokenizer: makes the ids.
        on_bad_row: see `recur.data.readers.checked`.
        allow_pickle: see `recur.data.sources.Source.read`.

    Raises:
        UserError: a row that is bad, or without a probability of each class.
    """
    rows = source.read(columns(class_names), allow_pickle=allow_pickle)
    restore(rows)
    good = checked(
        rows,
        TEXT,
        wrong_text=lambda value: "has no token" if lacks_tokens(value, tokenizer.kind) else None,
        on_bad_row=on_bad_row,
    )
    targets = class_probabilities(rows, good.numbers, class_names)
    np.save(folder / "targets.npy", targets)
    write_split(folder, good, targets.argmax(1), rows, tokenizer, TEXT)


def restore(rows: Rows) -> None:
    """Take away from the texts of csv and tsv files the `'` with which `recur.render.csv_cell` guards a cell."""
    for origin in rows.origins if TEXT in rows.columns else []:
        if not origin.file.lower().endswith(tuple(DELIMITED)):
            continue
        for row in range(origin.first, origin.first + origin.rows):
            text = rows.columns[TEXT][row]
            if isinstance(text, str) and _GUARDED.match(text):
                rows.columns[TEXT][row] = text[1:]


def class_probabilities(rows: Rows, numbers: NDArray[np.int64], class_names: Sequence[str]) -> NDArray[np.float32]:
    """Probability of each class of each text.

    Args:
        rows: as read.
        numbers: which of them.
        class_names: the classes, in order.

    Returns:
        `(texts, classes)`, each row's sum 1.

    Raises:
        UserError: no such columns, or a row without a probability of each class.
    """
    named = _named(class_names)
    file = rows.origins[0].file
    if _MAPPING in rows.columns:
        given: list[Any] = [
            [value.get(name) for name in class_names]
            if isinstance(value, dict) and len(value) == len(class_names)
            else value
            for value in rows.columns[_MAPPING]
        ]
    elif all(name in rows.columns for name in named):
        given = [list(row) for row in zip(*(rows.columns[name] for name in named), strict=True)]
    else:
        missing = next(name for name in named if name not in rows.columns)
        raise UserError(file, rule=f"has no column {missing!r} and none {_MAPPING!r}", remedy=_REMEDY)
    table = np.empty((len(numbers), len(class_names)))
    for place, row in enumerate(numbers.tolist()):
        values = _numbers(given[row])
        if values is None or abs(sum(values) - 1) > _SUM:
            rule = f"has not a probability of each of the classes {', '.join(class_names)}"
            raise UserError(rows.where(row), given[row], rule, _REMEDY)
        table[place] = values
    return (table / table.sum(1, keepdims=True)).astype(np.float32)


def _numbers(values: Any) -> list[float] | None:
    """Probabilities, of which a csv has spellings; None where one is not."""
    if not isinstance(values, list):
        return None
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    return numbers if all(math.isfinite(number) and 0 <= number <= 1 for number in numbers) else None
