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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recur.data.checks import Column, OnBadRow
from recur.errors import ABSENT, UserError

log = logging.getLogger(__name__)
DELIMITED = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PICKLES = (".pkl", ".pickle")
_NOT_UTF8 = "is not UTF-8"
_SURROGATE = "is not valid Unicode (a lone surrogate)"
_CONVERT = "convert the file, for instance with iconv -f cp1252 -t utf-8"
SUFFIXES = (*DELIMITED, *JSON_LINES, ".json", ".parquet", ".txt", *PICKLES)


@dataclass(frozen=True)
class Origin:
    """A file and where its rows begin."""

    file: str
    first: int
    rows: int
    lines: NDArray[np.int64] | None = None  # line on which each row starts


class Fault(NamedTuple):
    """What is wrong with a row.

    Attributes:
        reason: the fault and its column, the same for all rows that are bad in the same way.
        value: what stands there, `ABSENT` where there is nothing to show.
        detail: more about this row alone.
    """

    reason: str
    value: Any = ABSENT
    detail: str = ""

    def __str__(self) -> str:
        """All of it, for a message about this row."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.reason}{detail}" + ("" if self.value is ABSENT else f": {_shown(self.value)}")


@dataclass
class Rows:
    """Rows of one split as they were read, not yet checked.

    Attributes:
        columns: the columns asked for that exist, each a list with one value a row.
        available: names of all columns, or their numbers from 1 in a table without a line of names.
        origins: the files, in order.
        broken: why a row could not be read, by row number; its values are None.
        class_names: names of integer labels, for columns whose source knows them.
        lacking: of several files the first without a column that others have, and the columns that it has.
    """

    columns: dict[Any, list[Any]]
    available: list[Any]
    origins: list[Origin]
    broken: dict[int, Fault] = field(default_factory=dict)
    class_names: dict[Any, list[str]] = field(default_factory=dict)
    lacking: dict[Any, tuple[str, list[Any]]] = field(default_factory=dict)

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

    def column(self, name: Column, setting: str = "data.text_column") -> list[Any]:
        """One column; nulls where no row could be read, since then no column is known.

        Args:
            name: of the column, or its number.
            setting: what the user sets to choose it.

        Raises:
            UserError: no such column; names those there are.
        """
        if len(self.broken) == len(self):
            return [None] * len(self)
        if name not in self.columns:
            first = self.origins[0].file if self.origins else "no file"
            where, available = self.lacking.get(name, (first, self.available))
            if not all(_is_utf8(str(one)) for one in available):
                raise UserError(where, rule="has names of columns that are not UTF-8", remedy=_CONVERT)
            there = ", ".join(map(_shown, available[:20])) or "none"
            remedy = f"set {setting}"
            if (sign := other_delimiter(available)) and setting.startswith("data."):
                remedy = f"set 'data.delimiter={json.dumps(sign)}', by which these are separated"
            elif setting == "data.label_column" and where.lower().endswith(".txt"):
                remedy = "a .txt is one text: give a csv, tsv or jsonl with labels, or a folder for each class"
            elif where.lower().endswith(tuple(DELIMITED)) and isinstance(name, str) and setting.startswith("data."):
                numbers = "data.text_column=1 data.label_column=2"
                remedy += f"; if the first line is a row already, give column numbers, such as {numbers}"
            raise UserError(where, rule=f"has no column {name!r}, only {there}", remedy=remedy)
        return self.columns[name]


def other_delimiter(names: Sequence[Any]) -> str | None:
    """What separates the columns of a table that was read as one column; None where nothing does."""
    if len(names) != 1:
        return None
    return next((sign for sign in (";", "\t", "|") if sign in str(names[0])), None)


def read_file(
    file: str,
    columns: Sequence[Column] | None = None,
    *,
    delimiter: str | None = None,
    allow_pickle: bool = False,
    optional: bool = False,
) -> Rows:
    """Read one file by its suffix: csv, tsv, jsonl, json, parquet, txt (one row, column `text`), or a pickled frame.

    Args:
        file: its path.
        columns: names of the columns wanted, or numbers from 1 for a csv or tsv without a line of names; None for all.
        delimiter: between the fields of a csv or tsv; None for a comma and a tab.
        allow_pickle: load pickled pandas frames, which can run any code hidden in them.
        optional: a row may lack some of these columns or have bytes there that are not UTF-8: its value is `ABSENT`
            then, in place of a row that is broken; of columns of the same name none is read.

    Raises:
        UserError: a file that cannot be read as what its name says.
    """
    suffix = Path(file).suffix.lower()
    if numbered(columns) and suffix not in DELIMITED:
        raise UserError(file, rule="is no csv or tsv file, whose columns could be numbered", remedy="give their names")
    if suffix in PICKLES:
        return _read_pickle(file, columns, allow_pickle)
    if suffix == ".parquet":
        return _read_parquet(file, columns)
    if suffix not in SUFFIXES:
        raise UserError(file, rule=f"cannot be read: its suffix is none of {' '.join(SUFFIXES)}")
    content = _decoded(file)
    if suffix == ".txt":
        broken = {0: _not_utf8("", content)} if not _is_utf8(content) else {}
        return Rows({"text": [None if broken else content]}, ["text"], [Origin(file, 0, 1)], broken)
    if suffix in DELIMITED:
        return _read_delimited(file, content, delimiter or DELIMITED[suffix], columns, optional)
    if suffix in JSON_LINES:
        return _read_json_lines(file, content, columns, optional)
    return _read_json(file, content, columns, optional)


def numbered(columns: Sequence[Column] | None) -> bool:
    """Whether columns are given by number, so that the first line is a row."""
    return any(isinstance(column, int) for column in columns or ())


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
    text_column: Column = "text",
    label_column: Column | None = None,
    *,
    known_label: Callable[[Any], bool] | None = None,
    known: str = "",
    wrong_text: Callable[[str], str | None] | None = None,
    allow_empty: bool = False,
    on_bad_row: OnBadRow = "error",
    quiet: bool = False,
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
        quiet: do not log it, for rows that are read again.

    Raises:
        UserError: a missing column, no rows, or a bad row: names file, row, column, value and how many are like it.
    """
    if not len(rows):
        raise UserError(rows.origins[0].file if rows.origins else "the source", rule="has no rows")
    texts: list[Any] = rows.column(text_column)
    labels = None if label_column is None else rows.column(label_column, "data.label_column")
    allowed: dict[Any, bool] = {}

    bad: dict[int, Fault] = {}
    for row, text in enumerate(texts):
        if row in rows.broken:
            bad[row] = rows.broken[row]
        elif (wrong := _wrong_text(text, allow_empty) or (wrong_text and wrong_text(text))) is not None:
            bad[row] = Fault(f"column {text_column!r} {wrong}", text)
        elif labels is not None:
            label = labels[row]
            if label is not None and not isinstance(label, str | int | float | bool):
                bad[row] = Fault(f"column {label_column!r} is not one label", label)
            elif label is None or label == "" or label != label:
                bad[row] = Fault(f"column {label_column!r} has no label", label)
            elif isinstance(label, str) and not label.isascii() and not _is_utf8(label):
                bad[row] = Fault(f"column {label_column!r} {_SURROGATE}", label)
            elif known_label is not None and not allowed.setdefault(label, known_label(label)):
                bad[row] = Fault(f"column {label_column!r} is not one of the labels {known}", label)
    if bad and on_bad_row == "error":
        raise _bad_row(rows, bad)
    skipped = Counter(fault.reason for fault in bad.values())
    first: dict[str, int] = {}
    for row, fault in bad.items():
        first.setdefault(fault.reason, row)
    for reason, count in () if quiet else skipped.items():
        where, shown = rows.where(first[reason]), str(bad[first[reason]]).removeprefix(reason)
        log.warning("skipped %d of %d rows: %s (first: %s%s)", count, len(rows), reason, where, shown)
    if len(bad) == len(rows):
        raise UserError(rows.where(0), rule=f"and every other of {len(rows)} rows are bad: {next(iter(skipped))}")
    numbers = np.array([row for row in range(len(rows)) if row not in bad], dtype=np.int64)
    if bad:
        texts = [texts[row] for row in numbers.tolist()]
        labels = None if labels is None else [labels[row] for row in numbers.tolist()]
    return Checked(texts, labels, numbers, dict(skipped))


def _bad_row(rows: Rows, bad: dict[int, Fault]) -> UserError:
    """The error for the first bad row, which says how many others there are."""
    row, fault = next(iter(bad.items()))
    like = sum(other.reason == fault.reason for other in bad.values()) - 1
    different = len(bad) - like - 1
    others = f" and {like} more like it" if like else ""
    others += f", {different} bad in other ways" if different else ""
    # Where most texts are in another encoding, skipping would leave nothing but those in plain ASCII.
    remedy = _CONVERT if fault.reason.endswith(_NOT_UTF8) else "correct the file or set data.on_bad_row=skip"
    return UserError(f"{rows.where(row)}{others}:", rule=str(fault), remedy=remedy)


def _wrong_text(text: Any, allow_empty: bool) -> str | None:
    if text is None or (isinstance(text, float) and text != text):
        return "is null"
    if not isinstance(text, str):
        return "is not text"
    if "\0" in text:
        return "holds a NUL byte"
    if not allow_empty and not text.strip():
        return "is empty"
    if not text.isascii() and not _is_utf8(text):
        return _SURROGATE
    return None


def _shown(value: Any) -> str:
    """A value for a one-line message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


# ---- reading files
def _decoded(file: str, raw: bytes | None = None) -> str:
    """The file's text; bytes that are not UTF-8 become lone surrogates, to be reported with their row."""
    if raw is None:
        with open(file, "rb") as stream:
            raw = stream.read()
    halves = raw[:1000:2], raw[1:1000:2]  # of UTF-16 without its mark, one holds NULs where the other holds none
    unmarked = len(raw) > 3 and any(a.count(0) * 2 > len(a) and not b.count(0) for a, b in (halves, halves[::-1]))
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or unmarked:
        raise UserError(file, rule="is UTF-16, not UTF-8", remedy="convert it, for instance with iconv -f utf-16")
    if raw[:4] == b"PK\3\4" or raw[:2] == b"\x1f\x8b":
        raise UserError(file, rule="is compressed", remedy="unpack it first")
    return raw.decode("utf-8-sig", "surrogateescape")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _utf8_or_absent(value: Any) -> Any:
    return value if value is None or _is_utf8(value) else ABSENT


def _not_utf8(what: str, text: str, value: Any = ABSENT) -> Fault:
    byte = next(ord(c) - 0xDC00 for c in text if 0xDC80 <= ord(c) <= 0xDCFF)
    return Fault(f"{what} {_NOT_UTF8}".lstrip(), value, f"byte 0x{byte:02x}")


def joined(parts: list[Rows]) -> Rows:
    """Several files' rows one after the other; a column must be in each of them that has a row that can be read.

    Raises:
        UserError: their lists of class names differ, so that a number is another class in each.
    """
    if len(parts) == 1:
        return parts[0]
    readable = [part for part in parts if len(part.broken) < len(part)] or parts
    names = [name for name in readable[0].available if all(name in part.available for part in readable)]
    whole = Rows({name: [] for name in names if name in readable[0].columns}, names, [])
    for part in readable:
        for name in (name for other in readable for name in other.available if name not in part.available):
            whole.lacking.setdefault(name, (part.origins[0].file, part.available))
    for part in parts:
        start = len(whole)
        whole.broken.update({start + row: reason for row, reason in part.broken.items()})
        whole.origins += [Origin(o.file, start + o.first, o.rows, o.lines) for o in part.origins]
        for column, listed in part.class_names.items():
            if whole.class_names.setdefault(column, listed) != listed:
                ours, theirs = (", ".join(names)[:100] for names in (listed, whole.class_names[column]))
                raise UserError(
                    part.origins[0].file,
                    rule=f"lists the classes of column {column!r} as {ours}, and a file before it as {theirs}",
                    remedy="write both with one list of names",
                )
        for name, values in whole.columns.items():
            values += part.columns.get(name) or [None] * len(part)
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
        raise UserError(
            f"{file} line {before + 1}:", rule=str(error), remedy="is a quote left open, or not doubled inside quotes?"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows, starts


def _read_delimited(file: str, content: str, delimiter: str, columns: Sequence[Column] | None, optional: bool) -> Rows:
    rows, starts = _table_of(file, content, delimiter)
    if not rows:
        raise UserError(file, rule="is empty", remedy="its first line must name the columns")
    header: list[Any]
    if numbered(columns):
        header = list(range(1, len(rows[0]) + 1))
    else:
        header, rows, starts = rows[0], rows[1:], starts[1:]
    wanted = {name: header.index(name) for name in header if columns is None or name in columns}
    for double in [name for name, count in Counter(header).items() if count > 1 and name in wanted]:
        if not optional:
            count = header.count(double)
            raise UserError(f"{file} line 1:", rule=f"column {double!r} is there {count} times", remedy="rename one")
        del wanted[double]
    if not rows:
        names = ", ".join(map(repr, header))[:80]
        raise UserError(file, rule=f"has a line of column names ({names}) and no rows")
    broken: dict[int, Fault] = {}
    for number, row in enumerate(rows):
        if len(row) != len(header):
            detail = f"has {len(row)} against {len(header)}"
            broken[number] = Fault("the number of fields differs from the first line's", detail=detail)
    if not _is_utf8(content) and not optional:
        for number, row in enumerate(rows):
            spoilt = () if number in broken else ((name, row[index]) for name, index in wanted.items())
            for name, value in spoilt:
                if number not in broken and not _is_utf8(value):
                    broken[number] = _not_utf8(f"column {name!r}", value, value)
    values = {
        name: [None if number in broken else row[index] for number, row in enumerate(rows)]
        if broken
        else [row[index] for row in rows]
        for name, index in wanted.items()
    }
    if not _is_utf8(content) and optional:
        values = {name: [_utf8_or_absent(value) for value in column] for name, column in values.items()}
    return Rows(values, header, [Origin(file, 0, len(rows), np.array(starts, dtype=np.int64))], broken)


def _table_of(file: str, content: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """Rows of a csv, or of a tsv with or without quoting.

    A tsv may be quoted like a csv (pandas writes it so) or not know quotes at all (then `"` is a letter, and reading
    it as a quote could swallow lines). It is unquoted when every line has as many fields as the first and reading it
    with quotes fails or gives another number of rows.
    """
    if not file.lower().endswith(".tsv"):
        return _delimited_rows(file, content, delimiter, quoted=True)
    plain = _delimited_rows(file, content, delimiter, quoted=False)
    if '"' not in content:
        return plain
    regular = len({len(row) for row in plain[0]}) == 1
    try:
        quoted = _delimited_rows(file, content, delimiter, quoted=True)
    except UserError:
        return plain
    return plain if regular and len(quoted[0]) != len(plain[0]) else quoted


def _read_json_lines(file: str, content: str, columns: Sequence[Column] | None, optional: bool) -> Rows:
    records: list[Any] = []
    starts: list[int] = []
    broken: dict[int, Fault] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        row = len(records)
        starts.append(number)
        records.append(None)
        if not _is_utf8(line):
            broken[row] = _not_utf8("line", line)
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            broken[row] = Fault("is not JSON", detail=str(error))
            continue
        if isinstance(record, dict):
            records[row] = record
        else:
            broken[row] = Fault("is not a JSON object", record)
    return _from_records(file, records, starts, broken, columns, optional)


def _read_json(file: str, content: str, columns: Sequence[Column] | None, optional: bool) -> Rows:
    try:
        whole, end = json.JSONDecoder().raw_decode(content.strip())
    except (ValueError, RecursionError) as error:
        raise UserError(file, rule=f"is not JSON: {error}") from None
    if end < len(content.strip()):  # one value after the other
        return _read_json_lines(file, content, columns, optional)
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list)]
        first = lists[0][0] if len(lists) == 1 and lists[0] else None
        wrapped = isinstance(first, dict) and (columns is None or any(column in first for column in columns))
        if not wrapped and any(column in whole for column in columns or ()):
            whole = [whole]  # JSON lines of one row
        elif len(lists) == 1:
            whole = lists[0]
    if not isinstance(whole, list):
        raise UserError(file, rule=f"must be a JSON list of objects, and is a {type(whole).__name__}")
    broken = {
        row: Fault("is not a JSON object", value) for row, value in enumerate(whole) if not isinstance(value, dict)
    }
    records = [None if row in broken else value for row, value in enumerate(whole)]
    return _from_records(file, records, None, broken, columns, optional)


def _from_records(
    file: str,
    records: list[Any],
    starts: list[int] | None,
    broken: dict[int, Fault],
    columns: Sequence[Column] | None,
    optional: bool,
) -> Rows:
    if not records:
        raise UserError(file, rule="is empty", remedy="it has no rows")
    names = list(dict.fromkeys(name for record in records if record is not None for name in record))
    wanted = [name for name in names if columns is None or name in columns]
    for row, record in enumerate(() if optional else records):
        if record is not None and (missing := next((name for name in wanted if name not in record), None)) is not None:
            broken[row] = Fault(f"has no {missing!r}")
    values = {
        name: [
            None if row in broken or record is None else record.get(name, ABSENT) for row, record in enumerate(records)
        ]
        for name in wanted
    }
    lines = None if starts is None else np.array(starts, dtype=np.int64)
    return Rows(values, names, [Origin(file, 0, len(records), lines)], broken)


def _read_parquet(file: str, columns: Sequence[Column] | None) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        wanted = [name for name in schema.names if columns is None or name in columns]
        # memory_map: no copy of the file; use_threads stays on, text columns decode in parallel
        table = pq.read_table(file, columns=wanted, memory_map=True, partitioning=None)
        values = {name: table.column(name).to_pylist() for name in wanted}
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:  # a date too large is an OverflowError
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own, of damaged pages, has none
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(file, rule=f"is not a parquet file that can be read: {reason}") from None
    rows = Rows(values, list(schema.names), [Origin(file, 0, table.num_rows)])
    rows.class_names.update(_class_names(schema.metadata or {}, wanted))
    return rows


def _class_names(metadata: dict[bytes, bytes], columns: Sequence[str]) -> dict[str, list[str]]:
    """Names of integer labels from the `datasets` library's part of a parquet file's metadata, where it is sound."""
    try:
        node: Any = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    for key in ("info", "features"):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return {}
    features = {name: node[name] for name in columns if isinstance(node.get(name), dict)}
    names = {name: feature.get("names") for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    return {
        name: listed
        for name, listed in names.items()
        if isinstance(listed, list) and all(isinstance(word, str) for word in listed)
    }


def _read_pickle(file: str, columns: Sequence[Column] | None, allow_pickle: bool) -> Rows:
    if not allow_pickle:
        raise UserError(
            file,
            rule="is a pickle, and loading a pickle runs any code hidden in it",
            remedy="if you trust it, set data.allow_pickle=true, or convert it once: "
            f"python -c \"import pandas; pandas.read_pickle('{file}').to_parquet('{Path(file).stem}.parquet')\"",
        )
    import pandas as pd  # type: ignore[import-untyped]

    try:
        frame = pd.read_pickle(file)  # noqa: S301 - the user allowed it for this file
    except Exception as error:  # unpickling can raise anything
        raise UserError(file, rule=f"is not a pickled pandas frame: {type(error).__name__}: {error}") from None
    if not isinstance(frame, pd.DataFrame):
        raise UserError(file, rule=f"holds a {type(frame).__name__}, not a pandas frame")
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        double = Counter(names).most_common(1)[0][0]
        raise UserError(file, rule=f"has column {double!r} more than once", remedy="rename one")
    frame.columns = pd.Index(names)
    wanted = [name for name in names if columns is None or name in columns]
    values = {
        name: [None if pd.api.types.is_scalar(v) and pd.isna(v) else v for v in frame[name].tolist()] for name in wanted
    }
    return Rows(values, names, [Origin(file, 0, len(frame))])


def class_rows(files: Sequence[str], classes: Sequence[str], contents: Sequence[bytes] | None = None) -> Rows:
    """Rows of text files, one each, labelled with the classes that their folders name.

    Args:
        files: their names.
        classes: class of each.
        contents: bytes of each; None reads the files.
    """
    texts: list[str | None] = []
    broken: dict[int, Fault] = {}
    for row, file in enumerate(files):
        content = _decoded(file, None if contents is None else contents[row])
        if not content.isascii() and not _is_utf8(content):
            broken[row] = _not_utf8("", content)
        texts.append(None if row in broken else content)
    origins = [Origin(file, row, 1) for row, file in enumerate(files)]
    return Rows({"text": texts, "label": list(classes)}, ["text", "label"], origins, broken)
