"""Texts in, answers out: standard input, files, JSON, pages."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from recur.errors import UserError
from recur.render import PAGE_MARK, printable
from recur.runs.run import Run

CHUNK = 256  # texts read, answered and printed together


# ------------------------------------------------------------------------------------------------------ where texts are
@dataclass(frozen=True)
class Given:
    """A text and where it stood, for messages."""

    where: str
    text: str


def _chunks(texts: Iterator[Given], alone: bool) -> Iterator[list[Given]]:
    """Texts in groups; one at a time where somebody types them."""
    chunk: list[Given] = []
    for text in texts:
        chunk.append(text)
        if alone or len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _texts(arguments: argparse.Namespace, run: "Run") -> Iterator[Given]:
    """Texts of the command line, of a file or of standard input."""
    skip = arguments.skip_bad_rows
    if arguments.file and Path(arguments.file).suffix.lower() == ".txt":
        with open(arguments.file, "rb") as stream:
            yield from _lines(stream, arguments.file, skip)
    elif arguments.file:
        yield from _rows(arguments.file, arguments.column or run.config["data"].get("text_column", "text"), skip)
    elif arguments.texts:
        for number, text in enumerate(arguments.texts, start=1):
            if text.strip():
                yield Given(f"text {number}", text)
            else:
                _refuse(f"text {number} is empty", skip)
    else:
        if sys.stdin.isatty():
            print("recur: reading texts, one a line; end with Ctrl-D", file=sys.stderr)
        yield from _lines(sys.stdin.buffer, "standard input", skip)


def _lines(stream: BinaryIO, name: str, skip: bool) -> Iterator[Given]:
    number = 0
    for number, raw in enumerate(stream, start=1):
        where = f"{name} line {number}"
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            _refuse(
                f"{where} is not UTF-8 (byte 0x{raw[error.start]:02x})", skip, "convert it, for instance with iconv"
            )
            continue
        if text.strip():
            yield Given(where, text)
        else:
            _refuse(f"{where} is empty", skip)
    if not number:
        raise ValueError(f"{name} holds no text: give one a line")


def _rows(file: str, column: str, skip: bool) -> Iterator[Given]:
    from recur.data.readers import PICKLES, checked, read_file

    if Path(file).suffix.lower() in PICKLES:
        raise ValueError(f"{file} is a pickle, and loading a pickle runs any code hidden in it: give csv or parquet")
    rows = read_file(file, [column])
    try:
        good = checked(rows, column, on_bad_row="skip" if skip else "error")
    except ValueError as error:
        message = str(error).replace("set data.on_bad_row=skip", "give --skip-bad-rows")
        raise ValueError(message.replace("set data.text_column", "give --column")) from None
    for number, text in zip(good.numbers.tolist(), good.texts, strict=True):
        yield Given(rows.where(number), text)


def _refuse(problem: str, skip: bool, mend: str = "give at least one word") -> None:
    if not skip:
        raise ValueError(f"{problem}: {mend}, or give --skip-bad-rows")
    print(f"recur: skipped: {printable(problem)}", file=sys.stderr)


# --------------------------------------------------------------------------------------------------------------- output
def _print_json(record: dict[str, Any]) -> None:
    # ASCII: a lone surrogate or a control character of the text arrives escaped, whatever reads it.
    print(json.dumps(record), flush=True)


def check_page(path: str) -> None:
    """Refuse to put a page in place of something else: of a file, only a page of ours is written again.

    Raises:
        UserError: there is no such folder, or something else has this name.
    """
    place = Path(path)
    if not place.parent.is_dir():
        raise UserError(f"cannot write {path}:", rule=f"there is no folder {place.parent}")
    if not place.exists():
        return
    if not place.is_file():
        raise UserError(f"cannot write {path}:", rule="it is a folder" if place.is_dir() else "it is no file")
    with place.open("rb") as file:
        if PAGE_MARK not in file.read(1024):
            raise UserError(
                f"cannot write {path}:", rule="it is no page of recur.predict", remedy="remove it, or give another name"
            )


def _write_page(path: str, content: str) -> None:
    from recur.runs.files import write_atomic

    check_page(path)
    write_atomic(Path(path), content)
    print(f"recur: wrote {printable(path)}", file=sys.stderr)
