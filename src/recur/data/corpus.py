"""From running text to one array of token ids a split, a block at a time.

A corpus is read as lines. Word tokenizers put `<eos>` where a line ends, as WikiText and Penn Treebank are counted;
character and byte-pair tokenizers keep the newline as it stands. Plain text files are never held as a whole, so a
corpus larger than memory can be prepared; rows of tables are held a file at a time, and each row is a line.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recur.data.cache import Ragged, TokenCache, id_dtype
from recur.data.checks import Column, OnBadRow
from recur.data.readers import DELIMITED, JSON_LINES, PICKLES, Rows, checked
from recur.data.sources import JoinedSplits, Source, Split
from recur.data.text import Tokenizer, joins_words
from recur.errors import UserError

BLOCK = 1 << 20  # characters read, encoded and written at a time
_TABLES = (*DELIMITED, *JSON_LINES, ".json", ".parquet", *PICKLES)


@dataclass(frozen=True)
class Inline:
    """A text given in the config itself."""

    text: str

    def fingerprint(self, cache: TokenCache) -> str:
        """The text is its own."""
        return f"inline {self.text}"

    def read(self, columns: Any = None, *, allow_pickle: bool = False) -> Rows:
        """Not a table."""
        raise NotImplementedError


@dataclass(frozen=True)
class Reader:
    """How rows of tables are read.

    Attributes:
        text_column: column of text, by name or by number; see `recur.data.readers.read_file`.
        on_bad_row: `error` or `skip`.
        allow_pickle: load pickled pandas frames, which can run any code hidden in them.
        skipped: by file, once it was read: how many rows it has, and how many were left out by reason.
    """

    text_column: Column = "text"
    on_bad_row: OnBadRow = "error"
    allow_pickle: bool = False
    skipped: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict, compare=False)

    def blocks(self, source: Source) -> Iterator[str]:
        """The text of a source in blocks of about `BLOCK` characters; their concatenation is the text.

        Each of several files begins on a line of its own, whether or not the one before ends in a newline.

        Raises:
            UserError: a file that is not UTF-8, a missing column, a bad row.
        """
        if isinstance(source, Inline):
            yield with_newlines(source.text)
        elif isinstance(source, JoinedSplits):
            yield from _each_on_its_line(self.blocks(part) for part in source.parts)
        elif isinstance(source, Split) and source.files and source.classes is None:
            yield from _each_on_its_line(
                self._lines(replace(source, files=(file,))) if _is_table(file) else _file_blocks(file)
                for file in source.files
            )
        else:
            yield from self._lines(source)

    def _lines(self, source: Source) -> Iterator[str]:
        rows = source.read([self.text_column], allow_pickle=self.allow_pickle)
        name = rows.origins[0].file if rows.origins else ""
        again = name in self.skipped  # a text is read several times: cut, counted, encoded
        good = checked(rows, self.text_column, allow_empty=True, on_bad_row=self.on_bad_row, quiet=again)
        self.skipped[name] = (len(rows), good.skipped)
        block: list[str] = []
        size = 0
        for text in good.texts:
            text = with_newlines(text)
            line = text if text.endswith("\n") else f"{text}\n"
            block.append(line)
            size += len(line)
            if size >= BLOCK:
                yield "".join(block)
                block, size = [], 0
        yield "".join(block)


def with_newlines(text: str) -> str:
    """A text whose lines end in a newline, whatever system it is from."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _is_table(file: str) -> bool:
    return Path(file).suffix.lower() in _TABLES


def _each_on_its_line(texts: Iterable[Iterator[str]]) -> Iterator[str]:
    """The blocks of several texts, with a newline between two of them where the first does not end in one."""
    ended = True
    for blocks in texts:
        begun = False
        for block in filter(None, blocks):
            if not (begun or ended):
                yield "\n"
            yield block
            begun, ended = True, block.endswith("\n")


def _file_blocks(file: str) -> Iterator[str]:
    """A text file in blocks that end at a line's end, or at a space in a line that is longer than a block."""
    rest = ""
    with open(file, encoding="utf-8-sig") as stream:  # every kind of line end is read as a newline
        try:
            while piece := stream.read(BLOCK):
                if "\0" in piece:
                    raise UserError(file, rule="holds a NUL byte", remedy="it is not a text file")
                piece = rest + piece
                cut = piece.rfind("\n") + 1 or piece.rfind(" ") + 1 or len(piece)
                rest = piece[cut:]
                yield piece[:cut]
        except UnicodeDecodeError as error:
            raise UserError(
                file,
                rule=f"is not UTF-8 (byte 0x{error.object[error.start]:02x})",
                remedy="convert it, for instance with iconv",
            ) from None
    if rest:
        yield rest


def clipped(blocks: Iterable[str], first: int, end: int | None) -> Iterator[str]:
    """The characters `first` to `end` (None: to the end) of a text given in blocks."""
    start = 0
    for block in blocks:
        if end is not None and start >= end:
            return
        piece = block[max(0, first - start) : None if end is None else end - start]
        start += len(block)
        if piece:
            yield piece


def cuts(
    blocks: Callable[[], Iterable[str]], fractions: Mapping[str, float], kind: str
) -> dict[str, tuple[int, int | None]]:
    """Where the parts of one text begin and end, in characters: training first, then those of `fractions`.

    As in nanoGPT, training gets the first `int(n * (1 - fractions))` characters of `n`. Words are cut at the end of
    the line that holds that character or, where this would take more than half of the part (a text of one line or of
    few), after the word that holds it.

    Args:
        blocks: gives the text, anew each time.
        fractions: share of each part after the first, in order, such as {"val": .1}.
        kind: kind of the tokenizer.
    """
    total = sum(len(block) for block in blocks())
    left, edges = 1.0, list[int]()
    for share in reversed(list(fractions.values())):
        left -= share
        edges.insert(0, int(total * left + 1e-6))  # not one too few where 1 - .1 is a little below .9
    if joins_words(kind):
        edges = _between_words(blocks(), edges, total)
    starts = [0, *edges]
    ends: list[int | None] = [*edges, None]
    return dict(zip(("train", *fractions), zip(starts, ends, strict=True), strict=True))


def _between_words(blocks: Iterable[str], edges: list[int], total: int) -> list[int]:
    """Move each edge on to where a line begins or, where that is too far, a word."""
    lines: list[int | None] = [None] * len(edges)
    words = lines.copy()
    start = 0
    for block in blocks:
        for number, edge in enumerate(edges):
            for mark, places in (("\n", lines), (" ", words)):
                if places[number] is None and edge <= start + len(block):
                    place = block.find(mark, max(0, edge - 1 - start))
                    places[number] = None if place < 0 else start + place + 1
        start += len(block)
    moved: list[int] = []
    for edge, end, line, word in zip(edges, [*edges[1:], total], lines, words, strict=True):
        line, word = line or total, word or total
        moved.append(line if 2 * (line - edge) <= end - edge else min(line, word))
    return moved


def start_id(tokenizer: Tokenizer) -> int:
    """What stands before the first token of a text: `<eos>`, or a newline, or `<unk>`."""
    if tokenizer.eos_id is not None:
        return tokenizer.eos_id
    newline = tokenizer.encode("\n")
    return newline[0] if len(newline) == 1 else tokenizer.unk_id


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt as the training text would have them: for words, a line's end is `<eos>`."""
    prompt = with_newlines(prompt)
    if tokenizer.eos_id is None:
        return tokenizer.encode(prompt)
    ids: list[int] = []
    for number, line in enumerate(prompt.split("\n")):
        ids += [tokenizer.eos_id] * (number > 0) + tokenizer.encode(line)
    return ids


def readable(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of ids as people write it: `<eos>` is the end of a line."""
    if tokenizer.eos_id is None:
        return tokenizer.decode(ids)
    lines: list[list[int]] = [[]]
    for index in ids:
        if index == tokenizer.eos_id:
            lines.append([])
        else:
            lines[-1].append(index)
    return "\n".join(tokenizer.decode(line) for line in lines)


def encoded(blocks: Iterable[str], tokenizer: Tokenizer) -> Iterator[NDArray[np.int32]]:
    """Ids of a text, a block at a time; words get `<eos>` after each line, a last line without newline included."""
    if not joins_words(tokenizer.kind):
        for block in blocks:
            yield tokenizer.encode_batch([block])[0]
        return
    eos = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], dtype=np.int32)
    rest, begun = "", False  # begun: words of the last line have been given, and its <eos> has not
    for block in blocks:
        lines = (rest + block).split("\n")
        rest = lines.pop()
        begun = begun and not lines
        if len(rest) >= BLOCK:  # a line longer than a block: its words so far, and no <eos> yet
            cut = rest.rfind(" ") + 1
            lines.append(rest[:cut])
            begun = begun or not is_blank(rest[:cut])
            rest = rest[cut:]
            ids = tokenizer.encode_batch(lines)
            yield np.concatenate([part for line in ids[:-1] for part in (line, eos)] + [ids[-1]])
        elif lines:
            yield np.concatenate([part for line in tokenizer.encode_batch(lines) for part in (line, eos)])
    if begun or not is_blank(rest):
        yield np.concatenate([tokenizer.encode_batch([rest])[0], eos])


def is_blank(text: str) -> bool:
    """Whether it is white space to Unicode, whose rules the tokenizers follow: to Python 0x1c to 0x1f are, too."""
    return not text.strip() and re.search("[\x1c-\x1f]", text) is None


def build(
    folder: Path,
    texts: Mapping[str, Any],
    settings: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    """Write a cache entry: `tokenizer.json`, the ids of each split, and `facts.json`.

    Args:
        folder: of the entry.
        texts: a function a split that gives its blocks anew each time; the tokenizer learns from `train`.
        settings: keyword arguments of `Tokenizer.train`, `kind` among them.
        tokenizer: use this one instead.
    """
    if tokenizer is None:
        eos = joins_words(settings["kind"])
        tokenizer = Tokenizer.train(texts["train"](), **settings, eos=eos)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    facts: dict[str, dict[str, int]] = {}
    for split, blocks in texts.items():
        count = {"characters": 0, "unknown": 0}
        lengths = Ragged.save(
            folder,
            split,
            _counted(encoded(_measured(blocks(), count), tokenizer), count, tokenizer.unk_id),
            id_dtype(tokenizer.vocab_size),
        )
        facts[split] = {"tokens": int(lengths.sum()), **count}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _measured(blocks: Iterable[str], count: dict[str, int]) -> Iterator[str]:
    for block in blocks:
        count["characters"] += len(block)
        yield block


def _counted(ids: Iterable[NDArray[np.int32]], count: dict[str, int], unk_id: int) -> Iterator[NDArray[np.int32]]:
    for block in ids:
        count["unknown"] += int((block == unk_id).sum())
        yield block
