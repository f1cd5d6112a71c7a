"""Texts from the command line, files and pipes; answers as JSON lines, CSV and TSV."""

import csv
import json
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO, cast

from recur.cli import notify
from recur.data.checks import Column
from recur.data.readers import DELIMITED, JSON_LINES, PICKLES, Rows, checked, other_delimiter, read_file
from recur.errors import ABSENT, UserError
from recur.render import csv_cell, printable, shortened
from recur.runs.files import naming
from recur.runs.metrics import finite

CHUNK = 256  # most texts read, answered and shown together
FORMATS = ("auto", "text", "jsonl")
OUT_SUFFIXES = (".csv", ".tsv", ".jsonl")
_BLOCK = 1 << 16  # bytes
_SKIP = "or give --skip-bad-rows"


# ------------------------------------------------------------------------------------------------------- reading texts
@dataclass(frozen=True)
class Given:
    """A text to answer.

    Attributes:
        where: file and line or row, for messages.
        text: the text.
        columns: the row's other columns.
        problem: why there is no answer to it.
    """

    where: str
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: UserError | None = None


def from_arguments(texts: Sequence[str]) -> Iterator[list[Given]]:
    """Texts of the command line."""
    given = [_checked(Given(f"text {number}", text)) for number, text in enumerate(texts, start=1)]
    for first in range(0, len(given), CHUNK):
        yield given[first : first + CHUNK]


def is_delimited(file: str) -> bool:
    """Whether a file is a csv or tsv, whose columns can be numbered."""
    return Path(file).suffix.lower() in DELIMITED


def has_lines(file: str) -> bool:
    """Whether a file holds a text or a JSON object a line, and is no table."""
    suffix = Path(file).suffix.lower()
    return suffix == ".txt" or suffix in JSON_LINES


def from_file(
    file: str,
    column: Column,
    skip: bool,
    kind: str = "auto",
    delimiter: str | None = None,
    asked: str | None = None,
) -> Iterator[list[Given]]:
    """Texts of a txt (one a line), jsonl, csv, tsv, json or parquet file, with their other columns.

    Args:
        file: the path.
        column: column of the texts; in a csv or tsv without a line of names its number from 1, also in digits.
        skip: whether bad rows are passed over.
        kind: for txt and jsonl, as in `from_stream`; `auto` goes by the suffix.
        delimiter: between the fields of a csv or tsv; None for a comma and a tab.
        asked: as in `from_stream`.

    Raises:
        UserError: the file cannot be read or has no such column.
    """
    suffix = Path(file).suffix.lower()
    if suffix in PICKLES:
        raise UserError(file, rule="is a pickle, which could run any code", remedy="give csv, jsonl or parquet")
    if has_lines(file):
        with open(file, "rb") as stream:
            by_suffix = "text" if suffix == ".txt" else "jsonl"
            yield from from_stream(stream, file, str(column), by_suffix if kind == "auto" else kind, asked)
    else:
        given = list(_rows(file, column, skip, delimiter))
        for first in range(0, len(given), CHUNK):
            yield given[first : first + CHUNK]


def from_stream(
    stream: BinaryIO, name: str, column: str, kind: str = "auto", asked: str | None = None
) -> Iterator[list[Given]]:
    """Texts of a pipe or file, in the groups in which they come: what has arrived is answered before more is awaited.

    Args:
        stream: of lines in UTF-8.
        name: of the stream, for messages.
        column: of JSON objects, the column of the texts.
        kind: `text` for one text a line, `jsonl` for one JSON object a line, `auto` to go by the first line.
        asked: the column that somebody named, which one text a line does not have; None for none.

    Raises:
        UserError: there is no line, or none has columns and one was named.
    """
    number = 0
    for lines in _arriving(stream):
        chunk = []
        for raw in lines:
            number += 1
            where = f"{name} line {number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                rule = f"is not UTF-8 (byte 0x{raw[error.start]:02x})"
                chunk.append(
                    Given(
                        where,
                        "",
                        problem=UserError(where, rule=rule, remedy=f"convert it, for instance with iconv, {_SKIP}"),
                    )
                )
                continue
            if kind == "auto" and text.strip():
                kind = "jsonl" if isinstance(_json(text), dict) else "text"
            if kind == "text" and asked is not None:
                rule = f"names a column, and a line of {name} is a text"
                raise UserError("--column", asked, rule, "give JSON lines, or a csv with --file")
            given = _from_json(where, text, column) if kind == "jsonl" else Given(where, text)
            chunk.append(_checked(given))
        yield chunk
    if not number:
        raise UserError(name, rule="holds no text", remedy="give one a line")


def _arriving(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Lines that have arrived together, at most `CHUNK`; the last line need not end."""
    read = getattr(stream, "read1", stream.read)
    begun: list[bytes] = []  # pieces of a line whose end has not come
    while block := read(_BLOCK):
        first, *lines = block.split(b"\n")
        begun.append(first)
        if not lines:
            continue
        lines = [b"".join(begun), *lines]
        begun = [lines.pop()]
        for start in range(0, len(lines), CHUNK):
            yield lines[start : start + CHUNK]
    if last := b"".join(begun):
        yield [last]


def _json(text: str) -> Any:
    """The value of a JSON text, the error where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return error


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_json(where: str, line: str, column: str) -> Given:
    if not line.strip():
        return Given(where, "")
    record = _json(line)
    if isinstance(record, Exception):
        return Given(where, "", problem=UserError(where, rule="is not JSON", remedy="give --format text, " + _SKIP))
    if not isinstance(record, dict):
        shown = shortened(repr(record), 40)
        remedy = f"give --format text, {_SKIP}"
        return Given(where, "", problem=UserError(where, shown, "must be a JSON object", remedy))
    others = {key: value for key, value in record.items() if key != column}
    if isinstance(text := record.get(column), str):
        if is_utf8(text):
            return Given(where, text, others)
        rule = f"has text in {column!r} that is not valid Unicode (a lone surrogate)"
        return Given(where, "", problem=UserError(where, rule=rule, remedy=f"fix the file, {_SKIP}"))
    there = ", ".join(shortened(repr(key), 40) for key in list(record)[:20]) or "none"
    rule = f"has no text in {column!r}, only the columns {there}"
    return Given(where, "", problem=UserError(where, rule=rule, remedy=f"give --column, {_SKIP}"))


def _checked(given: Given) -> Given:
    """The same with its problem, where the text is blank."""
    if given.problem or given.text.strip():
        return given
    problem = UserError(given.where, rule="is empty", remedy=f"give at least one word, {_SKIP}")
    return Given(given.where, given.text, given.columns, problem)


def _column_remedy(available: Sequence[Any]) -> str:
    sign = other_delimiter(available)
    return f"give --delimiter {shlex.quote(sign)}, by which these are separated" if sign else "give --column"


def _rows(file: str, column: Column, skip: bool, delimiter: str | None) -> Iterator[Given]:
    """Good rows of a table; unless bad ones are skipped, all must be good before the first is answered."""
    rows = read_file(file, [column], delimiter=delimiter)
    if isinstance(column, str) and column.isdecimal() and column not in rows.available and is_delimited(file):
        column = int(column)
        rows = read_file(file, [column], delimiter=delimiter)
    if column not in rows.available and len(rows.broken) < len(rows):
        there = ", ".join(shortened(repr(name), 40) for name in rows.available[:20]) or "none"
        raise UserError(file, rule=f"has no column {column!r}, only {there}", remedy=_column_remedy(rows.available))
    try:
        good = checked(rows, column, on_bad_row="skip" if skip else "error")
    except UserError as error:
        remedy = f"fix the file, {_SKIP}" if error.remedy else ""
        raise UserError(error.key, error.value, error.rule, remedy) from None
    # Not read together with the texts: an object without an `id`, or a damaged one, would be a bad row.
    names = [name for name in rows.available if name != column]
    # No name at all would name the first row's.
    others = read_file(file, names, delimiter=delimiter, optional=True) if names else Rows({}, [], rows.origins)
    for number, text in zip(good.numbers.tolist(), good.texts, strict=True):
        values = {str(name): column[number] for name, column in others.columns.items() if number not in others.broken}
        yield Given(rows.where(number), text, {name: value for name, value in values.items() if value is not ABSENT})


def good_ones(chunk: Iterable[Given], skip: bool) -> tuple[list[Given], UserError | None]:
    """The texts to answer, and the problem that ends the reading.

    Args:
        chunk: texts, good and bad.
        skip: report bad texts and go on.

    Returns:
        all good texts, or those before the first bad one, with its problem.
    """
    good = []
    for given in chunk:
        if given.problem is None:
            good.append(given)
        elif not skip:
            return good, given.problem
        else:
            problem = UserError(given.problem.key, given.problem.value, given.problem.rule)
            print(f"recur: skipped: {printable(str(problem))}", file=sys.stderr)
    return good, None


# ----------------------------------------------------------------------------------------------------- writing answers
class Records(Protocol):
    """Where answers go, one record a text."""

    def write(self, columns: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Write one answer behind the columns that came with its text."""
        ...


class _Names:
    """What the columns of the input are called beside an answer, the same ones in each record.

    A column that is called as a part of the answer is, such as a true `label`, becomes `input_label`: or, where the
    input has that too, as one that was labelled before, `input_input_label`.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def renamed(self, columns: Mapping[str, Any], answer: Collection[str]) -> dict[str, Any]:
        """The columns under names that neither a part of the answer nor another column has."""
        for column in columns:
            if column in self._names and self._names[column] not in answer:
                continue
            name = column
            while name in answer or name in self._names.values() or (name != column and name in columns):
                name = f"input_{name}"
            self._names[column] = name
        return {self._names[column]: value for column, value in columns.items()}


class JsonLines:
    """Answers as one JSON object a line, each written at once.

    ASCII alone: a lone surrogate or a control character of a text arrives escaped, whatever reads it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._names = stream, _Names()

    def write(self, columns: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Write one answer behind the columns that came with its text."""
        record = {**self._names.renamed(columns, answer), **answer}
        print(_as_json(record), file=self._stream, flush=True)


def _as_json(value: Any) -> str:
    """A value as JSON, which has null in place of numbers that are not finite."""
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except ValueError:  # walked through by hand only then: it may be nested hundreds deep
        return json.dumps(finite(value), default=str, allow_nan=False)


class _Lines:
    """What a csv writer writes its rows to, each at once: CRLF at the end becomes a newline.

    Ending rows so makes the writer quote both of its letters in a cell, which some versions of Python 3.11 and 3.12
    otherwise do for the newline alone (python/cpython#67044).
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, row: str) -> int:
        """Write one row."""
        return self._stream.write(row.removesuffix("\r\n") + "\n")


class Delimited:
    """Answers as CSV or TSV; the first record names the columns, `probabilities.positive` one of a mapping's.

    A cell that a spreadsheet would take for a formula begins with `'`: JSON lines keep every text as it is.
    """

    def __init__(self, stream: TextIO, delimiter: str) -> None:
        self._stream, self._delimiter, self._names = stream, delimiter, _Names()
        self._writer: csv.DictWriter[str] | None = None
        self._said = False  # that columns are left out
        self._guarded = False  # whether it was said that cells are

    def write(self, columns: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Write one answer behind the columns that came with its text."""
        parts: dict[str, Any] = {}
        for key, value in answer.items():
            parts |= (
                {f"{key}.{name}": inner for name, inner in value.items()}
                if isinstance(value, Mapping)
                else {key: value}
            )
        own = self._names.renamed(columns, {*answer, *parts})
        record = {key: _cell(value) for key, value in {**own, **parts}.items()}
        if self._writer is None:
            style: dict[str, Any] = {"delimiter": self._delimiter, "extrasaction": "ignore", "lineterminator": "\r\n"}
            self._writer = csv.DictWriter(_Lines(self._stream), list(record), **style)
            self._writer.writerow({name: csv_cell(name) for name in record})
        if not self._guarded and any(isinstance(v, str) and v != record[k] for k, v in {**own, **parts}.items()):
            self._guarded = True
            notify(
                "cells that a spreadsheet would take for formulas are written with a ' before: --out X.jsonl has none"
            )
        further = [name for name in record if name not in self._writer.fieldnames]
        if further and not self._said:
            self._said = True
            notify(f"columns that the first text lacks are left out, such as {further[0]!r}: --out X.jsonl keeps them")
        self._writer.writerow(record)
        self._stream.flush()


def _cell(value: Any) -> Any:
    """A value as a cell: what has parts as JSON, a text so that no spreadsheet takes it for a formula."""
    if isinstance(value, str):
        return csv_cell(value)
    return _as_json(value) if isinstance(value, (Mapping, list, tuple)) else value


def check_out(path: str, overwrite: bool, sources: Iterable[str | int] = (), option: str = "--out") -> None:
    """Refuse a file for answers that cannot be written or holds something.

    Args:
        path: the file.
        overwrite: whether what it holds may go.
        sources: files that are read, or the descriptors of open ones.
        option: that names the file.

    Raises:
        UserError: another suffix than `OUT_SUFFIXES`, no such folder, or it exists.
    """
    out = Path(path)
    if out.suffix.lower() not in OUT_SUFFIXES:
        raise UserError(option, path, f"must end in one of {' '.join(OUT_SUFFIXES)}")
    check_folder(option, path)
    if out.exists() and any(_is_same(out, source) for source in sources):
        raise UserError(option, path, "is a file of the texts", "give another one")
    if out.exists() and not overwrite:
        raise UserError(option, path, "must not exist", "give another name or --overwrite")


def _is_same(out: Path, source: str | int) -> bool:
    try:
        return os.path.samefile(out, source)
    except OSError:  # no such file: it may be a pattern
        return False


def check_folder(option: str, path: str) -> None:
    """Refuse a file whose folder does not exist, now and not when all is answered.

    Raises:
        UserError: no such folder, or the file is one.
    """
    if not Path(path).parent.is_dir():
        raise UserError(option, path, f"cannot be written, there is no folder {Path(path).parent}")
    if Path(path).is_dir():
        raise UserError(option, path, "cannot be written, it is a folder")


class _WhenWritten:
    """A file that is opened when the first answer is written: a refusal before that leaves what was there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: TextIO | None = None

    def opened(self) -> TextIO:
        """The file itself."""
        if self._file is None:
            self._file = open(self._path, "w", encoding="utf-8", errors="backslashreplace", newline="")  # noqa: SIM115
        return self._file

    def write(self, text: str) -> int:
        """Write to it."""
        return self.opened().write(text)

    def flush(self) -> None:
        """Flush what was written."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()


@contextmanager
def open_out(path: str | None) -> Iterator[TextIO]:
    """The file for answers, opened for writing; standard output without one. An error of the system names it.

    The file is touched with the first answer, or at the end where there was no text.
    """
    if path is None:
        yield sys.stdout
        return
    with naming(path), closing(_WhenWritten(path)) as file:
        yield cast(TextIO, file)
        file.opened()


def records(stream: TextIO, path: str | None) -> Records:
    """How answers are written to an open file: by its suffix, JSON lines on standard output."""
    suffix = ".jsonl" if path is None else Path(path).suffix.lower()
    return JsonLines(stream) if suffix == ".jsonl" else Delimited(stream, "," if suffix == ".csv" else "\t")
