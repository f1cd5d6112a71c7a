"""One file or folder of text to checked rows."""

import bisect
import csv
import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recur.errors import ABSENT, UserError

log = logging.getLogger(__name__)
DELIMITED = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PICKLES = (".pkl", ".pickle")
SUFFIXES = (*DELIMITED, *JSON_LINES, ".json", ".parquet", ".txt", *PICKLES)


@dataclass(frozen=True)
class Origin:
    """A file and where its rows begin."""

    file: str
    first: int
    rows: int
    lines: NDArray[np.int64] | None = None  # line on which each row starts


@dataclass
class Rows:
    """Rows of one split as they were found, not yet checked.

    Attributes:
        columns: the columns asked for that exist, each a list with one value a row.
        available: names of all columns.
        origins: the files, in order.
        broken: why a row could not be read, by row number; its values are None.
        class_names: names of integer labels, for columns whose source knows them.
    """

    columns: dict[str, list[Any]]
    available: list[str]
    origins: list[Origin]
    broken: dict[int, str] = field(default_factory=dict)
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows, broken ones included."""
        return sum(origin.rows for origin in self.origins)

    def where(self, row: int) -> str:
        """File, row and line of a row as people count them, from 1."""
        origin = self.origins[bisect.bisect_right(self.origins, row, key=lambda origin: origin.first) - 1]
        if origin.rows == 1 and origin.file.endswith(".txt"):
            return origin.file
        inside = row - origin.first
        line = "" if origin.lines is None else f" (line {origin.lines[inside]})"
        return f"{origin.file} row {inside + 1}{line}"

    def column(self, name: str, setting: str = "text_column") -> list[Any]:
        """One column; nulls where no row could be read, since then no column is known.

        Args:
            name: of the column.
            setting: which one of `data` names it.

        Raises:
            ValueError: no such column; names those there are.
        """
        if len(self.broken) == len(self):
            return [None] * len(self)
        if name not in self.columns:
            where = self.origins[0].file if self.origins else "no file"
            there = ", ".join(map(_shown, self.available[:20])) or "none"
            raise ValueError(f"{where} has no column {name!r}, only {there}: set data.{setting}")
        return self.columns[name]


def read_file(file: str, columns: Sequence[str] | None = None, *, allow_pickle: bool = False) -> Rows:
    """Read one file by its suffix: csv, tsv, jsonl, json, parquet, txt (one row, column `text`), or a pickled frame."""
    suffix = Path(file).suffix.lower()
    if suffix in PICKLES:
        return _read_pickle(file, columns, allow_pickle)
    if suffix == ".parquet":
        return _read_parquet(file, columns)
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot read {file!r}: its suffix is none of {' '.join(SUFFIXES)}")
    content = _decoded(file)
    if suffix == ".txt":
        broken = {0: _not_utf8(content)} if not _is_utf8(content) else {}
        return Rows({"text": [None if broken else content]}, ["text"], [Origin(file, 0, 1)], broken)
    if suffix in DELIMITED:
        return _read_delimited(file, content, DELIMITED[suffix], columns)
    if suffix in JSON_LINES:
        return _read_json_lines(file, content, columns)
    return _read_json(file, content, columns)


# ---- checking rows
@dataclass(frozen=True)
class Checked:
    """Rows that passed.

    Attributes:
        texts: one text a row.
        labels: raw label values in the same order, or None where no label column was asked for.
        numbers: number of each row in its source, from 0, `(rows,)` int64.
        skipped: how many rows were left out, by reason.
    """

    texts: list[str]
    labels: list[Any] | None
    numbers: NDArray[np.int64]
    skipped: dict[str, int]


def checked(
    rows: Rows,
    text_column: str = "text",
    label_column: str | None = None,
    *,
    known_label: Callable[[Any], bool] | None = None,
    known: str = "",
    wrong_text: Callable[[str], str | None] | None = None,
    allow_empty: bool = False,
    on_bad_row: str = "error",
) -> Checked:
    """Look at every row and keep the good ones.

    Args:
        rows: as read.
        text_column: column of text.
        label_column: column of labels, or None for unlabelled text.
        known_label: whether a label value is allowed; None allows every value but null.
        known: what to call the labels that are, in a message.
        wrong_text: says what else is wrong with a text, if anything.
        allow_empty: keep texts of white space only (a language model's blank lines).
        on_bad_row: `error` stops at the first bad row, `skip` leaves bad rows out and logs how many.

    Raises:
        ValueError: a missing column, no rows, or a bad row: names file, row, column, value and how many are like it.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"on_bad_row is error or skip, got {on_bad_row!r}")
    if not len(rows):
        raise ValueError(f"{rows.origins[0].file if rows.origins else 'the source'} has no rows")
    texts: list[Any] = rows.column(text_column)
    labels = None if label_column is None else rows.column(label_column, "label_column")
    allowed: dict[Any, bool] = {}

    bad: dict[int, tuple[str, str, Any]] = {}  # row -> column, what is wrong, value
    for row, text in enumerate(texts):
        if row in rows.broken:
            bad[row] = ("", rows.broken[row], None)
        elif (wrong := _wrong_text(text, allow_empty) or (wrong_text and wrong_text(text))) is not None:
            bad[row] = (text_column, wrong, text)
        elif labels is not None:
            label = labels[row]
            if label is None or label == "" or label != label:
                bad[row] = (label_column or "", "has no label", label)
            elif not isinstance(label, str | int | float | bool):
                bad[row] = (label_column or "", "is not one label", label)
            elif known_label is not None and not allowed.setdefault(label, known_label(label)):
                bad[row] = (label_column or "", f"is not one of the labels {known}", label)
    if bad and on_bad_row == "error":
        row, (column, wrong, value) = next(iter(bad.items()))
        like = sum(reason == wrong and where == column for where, reason, _ in bad.values()) - 1
        subject = f"column {column!r} {wrong}: {_shown(value)}" if column else wrong
        others = f" and {like} more like it" if like else ""
        different = len(bad) - like - 1
        others += f", {different} bad in other ways" if different else ""
        remedy = "mend the file or set data.on_bad_row=skip"
        raise UserError(f"{rows.where(row)}{others}:", ABSENT, subject, remedy)
    skipped = Counter(f"column {column!r} {wrong}" if column else wrong for column, wrong, _ in bad.values())
    for reason, count in skipped.items():
        first = next(row for row, (c, w, _) in bad.items() if reason == (f"column {c!r} {w}" if c else w))
        log.warning("skipped %d of %d rows: %s (first: %s)", count, len(rows), reason, rows.where(first))
    if len(bad) == len(rows):
        raise ValueError(f"{rows.where(0)}: no good row among {len(rows)}: {next(iter(skipped))}")
    numbers = np.array([row for row in range(len(rows)) if row not in bad], dtype=np.int64)
    if bad:
        texts = [texts[row] for row in numbers.tolist()]
        labels = None if labels is None else [labels[row] for row in numbers.tolist()]
    return Checked(texts, labels, numbers, dict(skipped))


def _wrong_text(text: Any, allow_empty: bool) -> str | None:
    if text is None or text != text:
        return "is null"
    if not isinstance(text, str):
        return "is not text"
    if "\0" in text:
        return "holds a NUL byte"
    if not allow_empty and not text.strip():
        return "is empty"
    if not text.isascii() and not _is_utf8(text):
        return "is not valid Unicode (a lone surrogate)"
    return None


def _shown(value: Any) -> str:
    """A value for a one-line message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


# ---- reading files
def _decoded(file: str) -> str:
    """The file's text; bytes that are not UTF-8 become lone surrogates, to be reported with their row."""
    with open(file, "rb") as stream:
        raw = stream.read()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{file} is UTF-16, files are read as UTF-8: convert it, for instance with iconv -f utf-16")
    if raw[:4] == b"PK\3\4" or raw[:2] == b"\x1f\x8b":
        raise ValueError(f"{file} is compressed: unpack it first")
    return raw.decode("utf-8-sig", "surrogateescape")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(text: str) -> str:
    byte = next(ord(c) - 0xDC00 for c in text if 0xDC80 <= ord(c) <= 0xDCFF)
    return f"is not UTF-8 (byte 0x{byte:02x})"


def _joined(parts: list[Rows]) -> Rows:
    """Several files' rows one after the other; a column must be in all of them."""
    if len(parts) == 1:
        return parts[0]
    names = [name for name in parts[0].available if all(name in part.available for part in parts)]
    whole = Rows({name: [] for name in names if name in parts[0].columns}, names, [])
    for part in parts:
        start = len(whole)
        whole.broken.update({start + row: reason for row, reason in part.broken.items()})
        whole.origins += [Origin(o.file, start + o.first, o.rows, o.lines) for o in part.origins]
        whole.class_names.update(part.class_names)
        for name, values in whole.columns.items():
            values += part.columns[name]
    return whole


def _delimited_rows(file: str, content: str, delimiter: str, quoted: bool) -> tuple[list[list[str]], list[int]]:
    """All rows of a csv or tsv and the line each starts on; blank lines are no rows."""
    style: dict[str, Any] = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    # newline="": lines end at \n, \r\n and \r alone; str.splitlines would cut fields at form feeds too
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, **style)
    rows: list[list[str]] = []
    starts: list[int] = []
    before = 0
    limit = csv.field_size_limit(sys.maxsize)
    try:
        for row in reader:
            if row:
                rows.append(row)
                starts.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{file} line {before + 1}: {error}: is a quote left open, or not doubled inside quotes?"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows, starts


def _read_delimited(file: str, content: str, delimiter: str, columns: Sequence[str] | None) -> Rows:
    rows, starts = _table_of(file, content, delimiter)
    if not rows:
        raise ValueError(f"{file} is empty: its first line must name the columns")
    header, rows, starts = rows[0], rows[1:], starts[1:]
    double = next((name for name, count in Counter(header).items() if count > 1), None)
    if double is not None:
        raise ValueError(f"{file} line 1: column {double!r} is there {header.count(double)} times: rename one")
    if not rows:
        raise ValueError(f"{file} has a line of column names ({', '.join(map(repr, header))[:80]}) and no rows")
    wanted = [name for name in header if columns is None or name in columns]
    broken: dict[int, str] = {}
    for number, row in enumerate(rows):
        if len(row) != len(header):
            broken[number] = f"the number of fields differs from the first line's: {len(row)} against {len(header)}"
    if not _is_utf8(content):
        for number, row in enumerate(rows):
            spoilt = next((i for i, value in enumerate(row) if not _is_utf8(value)), None)
            if spoilt is not None and number not in broken:
                name = header[spoilt]
                broken[number] = f"column {name!r} {_not_utf8(row[spoilt])}: {_shown(row[spoilt])}"
    values = {
        name: [None if number in broken else row[header.index(name)] for number, row in enumerate(rows)]
        if broken
        else [row[index] for row in rows]
        for name in wanted
        for index in [header.index(name)]
    }
    return Rows(values, header, [Origin(file, 0, len(rows), np.array(starts, dtype=np.int64))], broken)


def _table_of(file: str, content: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """Rows of a csv, or of a tsv with or without quoting.

    A tsv may be quoted like a csv (pandas writes it so) or not know quotes at all (then `"` is a letter, and reading
    it as a quote could swallow lines). It is unquoted when every line has as many fields as the first and reading it
    with quotes fails or gives another number of rows.
    """
    if delimiter == ",":
        return _delimited_rows(file, content, delimiter, quoted=True)
    plain = _delimited_rows(file, content, delimiter, quoted=False)
    if '"' not in content:
        return plain
    regular = len({len(row) for row in plain[0]}) == 1
    try:
        quoted = _delimited_rows(file, content, delimiter, quoted=True)
    except ValueError:
        return plain
    return plain if regular and len(quoted[0]) != len(plain[0]) else quoted


def _read_json_lines(file: str, content: str, columns: Sequence[str] | None) -> Rows:
    records: list[Any] = []
    starts: list[int] = []
    broken: dict[int, str] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        row = len(records)
        starts.append(number)
        records.append(None)
        if not _is_utf8(line):
            broken[row] = f"line {_not_utf8(line)}"
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            broken[row] = f"is not JSON ({error})"
            continue
        if isinstance(record, dict):
            records[row] = record
        else:
            broken[row] = f"is not a JSON object: {_shown(record)}"
    return _from_records(file, records, starts, broken, columns)


def _read_json(file: str, content: str, columns: Sequence[str] | None) -> Rows:
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):
            return _read_json_lines(file, content, columns)
        raise ValueError(f"{file} is not JSON: {error}") from None
    if isinstance(whole, dict) and len(lists := [v for v in whole.values() if isinstance(v, list)]) == 1:
        whole = lists[0]
    if not isinstance(whole, list):
        raise ValueError(f"{file} is not a JSON list of objects, but a {type(whole).__name__}")
    broken = {
        row: f"is not a JSON object: {_shown(value)}" for row, value in enumerate(whole) if not isinstance(value, dict)
    }
    return _from_records(
        file, [None if row in broken else value for row, value in enumerate(whole)], None, broken, columns
    )


def _from_records(
    file: str, records: list[Any], starts: list[int] | None, broken: dict[int, str], columns: Sequence[str] | None
) -> Rows:
    if not records:
        raise ValueError(f"{file} is empty: it has no rows")
    names = list(dict.fromkeys(name for record in records if record is not None for name in record))
    wanted = [name for name in names if columns is None or name in columns]
    for row, record in enumerate(records):
        if record is not None and (missing := next((name for name in wanted if name not in record), None)) is not None:
            broken[row] = f"has no {missing!r}"
    values = {
        name: [None if row in broken or record is None else record[name] for row, record in enumerate(records)]
        for name in wanted
    }
    lines = None if starts is None else np.array(starts, dtype=np.int64)
    return Rows(values, names, [Origin(file, 0, len(records), lines)], broken)


def _read_parquet(file: str, columns: Sequence[str] | None) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        wanted = [name for name in schema.names if columns is None or name in columns]
        # memory_map: no copy of the file; use_threads stays on, text columns decode in parallel
        table = pq.read_table(file, columns=wanted, memory_map=True, partitioning=None)
        values = {name: table.column(name).to_pylist() for name in wanted}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a readable parquet file: {str(error).splitlines()[0]}") from None
    rows = Rows(values, list(schema.names), [Origin(file, 0, table.num_rows)])
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {})
    for name in wanted:
        if isinstance(feature := features.get(name), dict) and feature.get("_type") == "ClassLabel":
            rows.class_names[name] = list(feature["names"])
    return rows


def _read_pickle(file: str, columns: Sequence[str] | None, allow_pickle: bool) -> Rows:
    if not allow_pickle:
        raise ValueError(
            f"{file} is a pickle, and loading a pickle runs any code hidden in it: if you trust it, set "
            "data.allow_pickle=true, or convert it once: "
            f"python -c \"import pandas; pandas.read_pickle('{file}').to_parquet('{Path(file).stem}.parquet')\""
        )
    import pandas as pd  # type: ignore[import-untyped]

    try:
        frame = pd.read_pickle(file)  # noqa: S301 - the user allowed it for this file
    except Exception as error:  # unpickling can raise anything
        raise ValueError(f"{file} is not a pickled pandas frame: {type(error).__name__}: {error}") from None
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{file} holds a {type(frame).__name__}, not a pandas frame")
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: column {Counter(names).most_common(1)[0][0]!r} is there more than once: rename one")
    frame.columns = pd.Index(names)
    wanted = [name for name in names if columns is None or name in columns]
    values = {
        name: [None if pd.api.types.is_scalar(v) and pd.isna(v) else v for v in frame[name].tolist()] for name in wanted
    }
    return Rows(values, names, [Origin(file, 0, len(frame))])


def _read_class_files(files: Sequence[str], classes: Sequence[str]) -> Rows:
    texts: list[str | None] = []
    broken: dict[int, str] = {}
    for row, file in enumerate(files):
        content = _decoded(file)
        if not content.isascii() and not _is_utf8(content):
            broken[row] = _not_utf8(content)
        texts.append(None if row in broken else content)
    origins = [Origin(file, row, 1) for row, file in enumerate(files)]
    return Rows({"text": texts, "label": list(classes)}, ["text", "label"], origins, broken)
