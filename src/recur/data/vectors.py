"""Word vectors to start an embedding from: read from a file, or made with word2vec from the task's own text.

Files are parsed, never unpickled: word2vec's text and binary formats (Mikolov et al. 2013), and GloVe's text format,
which is the former without its first line. fastText's `.vec` is word2vec text.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recur.data.cache import Ragged, TokenCache, content_key
from recur.data.checks import Count, Seed, hold
from recur.data.sources import Split
from recur.data.text import Tokenizer
from recur.errors import UserError

log = logging.getLogger(__name__)
_PICKLES = (".pkl", ".pickle", ".model", ".kv", ".pt", ".pth", ".npy", ".joblib")
_FASTTEXT = b"\xba\x16\x4f\x2f"
_MOST_NUMBERS = 100_000  # a word; a vocabulary of them would fill any memory
_LONGEST_LINE = 1 << 22  # bytes
_CUT = "was the file cut short? Get it again, or correct that line"
_SENTENCE = 10_000  # gensim silently drops what a longer sentence has beyond this


@dataclass(frozen=True)
class WordVectors:
    """A vector for each token id.

    Attributes:
        matrix: `(vocab_size, dim)` float32. Words without a vector in the source have random ones of like size.
        known: which ids have a vector in the source, `(vocab_size,)`.
        source: what they came from.
    """

    matrix: Tensor
    known: NDArray[np.bool_]
    source: str

    def coverage(self, counts: NDArray[np.int64]) -> str:
        """How much of the vocabulary and of the text the source has; `counts` says how often each id occurs."""
        words, text = self.known.mean(), counts[self.known].sum() / max(1, counts.sum())
        return (
            f"{self.matrix.shape[1]} numbers a word from {self.source}: {self.known.sum():,} of {len(self.known):,} "
            f"words found ({words:.1%}), {text:.1%} of the training text"
        )


def load_vectors(path: str | os.PathLike[str], tokenizer: Tokenizer, cache: TokenCache, seed: int = 0) -> WordVectors:
    """Vectors of a tokenizer's vocabulary from a file.

    Args:
        path: word2vec text or binary, GloVe, or fastText `.vec`.
        tokenizer: whose vocabulary; words are looked up as they are spelled there.
        cache: keeps the rows, so that a big file is read once.
        seed: of the vectors of words that the file lacks.

    Raises:
        UserError: no such file, a format that needs unpickling, a line of another length, no word of the vocabulary.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise UserError("data.vectors", str(path), "must be a file of word vectors or `train`", "no such file")
    if file.suffix.lower() in _PICKLES:
        raise UserError(
            str(path),
            rule="looks like a pickle or an array, which could run code or says no words",
            remedy="save it as word2vec text (gensim: model.wv.save_word2vec_format(file))",
        )
    key = {"vectors": Split((str(file),)).fingerprint(cache), "vocabulary": content_key(tokenizer.vocabulary)}

    def build(folder: Path) -> None:
        rows, known = _parse(file, {word: index for index, word in enumerate(tokenizer.vocabulary)})
        if not known.any():
            words = tokenizer.vocab_size
            raise UserError(str(path), rule=f"has a vector for none of the {words} words of the vocabulary")
        np.save(folder / "vectors.npy", rows)
        np.save(folder / "known.npy", known)

    return _from_entry(cache.entry(key, build), file.name, seed)


def train_word2vec(
    corpora: Sequence[tuple[Ragged, NDArray[np.int64]]],
    tokenizer: Tokenizer,
    cache: TokenCache,
    identity: Mapping[str, Any],
    *,
    dim: Count = 100,
    window: Count = 5,
    epochs: Count = 5,
    min_count: Count = 2,
    skip_gram: bool = False,
    seed: Seed = 0,
) -> WordVectors:
    """Train word2vec on token ids. One thread, so that a seed gives the same vectors each time; kept in the cache.

    Args:
        corpora: texts and which of their rows to use: the training split and unlabelled texts, never the test split.
        tokenizer: that made the ids.
        cache: keeps the result.
        identity: plain values that say which texts these are.
        dim: numbers a word.
        window: words looked at on each side.
        epochs: passes over the text.
        min_count: leave out words seen fewer times.
        skip_gram: predict neighbours from the word instead of the word from its neighbours.
        seed: of the training, and of the vectors of words left out.

    Raises:
        UserError: gensim is not installed, a setting out of range, too little text.
    """
    given = {"dim": dim, "window": window, "epochs": epochs, "min_count": min_count, "seed": seed}
    hold(train_word2vec, given, "data.word2vec")
    settings = {"dim": dim, "window": window, "epochs": epochs, "min_count": min_count, "sg": skip_gram, "seed": seed}

    def build(folder: Path) -> None:
        try:
            from gensim.models import Word2Vec
        except ImportError:
            raise UserError(
                "data.vectors", "train", "needs gensim", "pip install gensim, or the extra `word2vec`"
            ) from None
        log.info("training word2vec (%d numbers a word, %d epochs): once, then kept in the cache", dim, epochs)
        sentences = _Sentences(corpora, tokenizer.vocabulary)
        try:
            model = Word2Vec(
                sentences,
                vector_size=dim,
                window=window,
                epochs=epochs,
                min_count=min_count,
                sg=int(skip_gram),
                seed=seed,
                workers=1,
            )
        except RuntimeError as error:  # "you must first build vocabulary": no word is left
            raise UserError(
                "data.word2vec.min_count", min_count, f"must leave some words: {error}", "lower it, or give more text"
            ) from None
        rows = np.zeros((tokenizer.vocab_size, dim), dtype=np.float32)
        known = np.zeros(tokenizer.vocab_size, dtype=bool)
        for index, word in enumerate(tokenizer.vocabulary):
            if word in model.wv:
                rows[index], known[index] = model.wv[word], True
        np.save(folder / "vectors.npy", rows)
        np.save(folder / "known.npy", known)

    folder = cache.entry({"word2vec": settings, **identity}, build)
    return _from_entry(folder, "word2vec on the task's own text", seed)


class _Sentences:
    """Texts as lists of words, again and again."""

    def __init__(self, corpora: Sequence[tuple[Ragged, NDArray[np.int64]]], vocabulary: list[str]) -> None:
        self._corpora = corpora
        self._vocabulary = vocabulary

    def __iter__(self) -> Iterator[list[str]]:
        for tokens, rows in self._corpora:
            for row in rows.tolist():
                words = [self._vocabulary[index] for index in tokens[row].tolist()]
                for start in range(0, len(words), _SENTENCE):
                    yield words[start : start + _SENTENCE]


def _from_entry(folder: Path, source: str, seed: int) -> WordVectors:
    """Fill up what the source lacks with random vectors whose numbers have the others' mean and spread."""
    rows, known = np.load(folder / "vectors.npy"), np.load(folder / "known.npy")
    random = np.random.default_rng(seed)
    rows[~known] = random.normal(rows[known].mean(), rows[known].std(), (int((~known).sum()), rows.shape[1]))
    return WordVectors(torch.from_numpy(rows), known, source)


def _parse(file: Path, wanted: dict[str, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of the wanted words, and which of them the file has."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(4)
        if start[:1] == b"\x80" or start[:4] == _FASTTEXT or start[:2] in (b"\x1f\x8b", b"PK"):
            kind = {b"\x80": "a pickle", b"\xba": "fastText's own binary"}.get(start[:1], "compressed")
            raise UserError(
                str(file), rule=f"is {kind}", remedy="give word2vec text or binary, GloVe, or fastText's .vec"
            )
        stream.seek(0)
        line = stream.readline(_LONGEST_LINE)
        first = line.split()
        headed = len(first) == 2 and first[0].isdigit() and first[1].isdigit()
        count, dim = (int(first[0]), int(first[1])) if headed else (None, len(first) - 1)
        if dim < 1:
            raise UserError(str(file), rule=f"holds no word vectors: its first line is {line[:40]!r}")
        if count is not None and count * dim * 2 > size:  # the shortest number takes a digit and a space
            promise = f"{count:,} vectors of {dim:,} numbers"
            raise UserError(str(file), rule=f"promises {promise} in its first line, and has only {size:,} bytes")
        if dim > _MOST_NUMBERS:
            raise UserError(str(file), rule=f"has {dim:,} numbers a word, more than {_MOST_NUMBERS:,}")
        if count is None:
            stream.seek(0)
            return _parse_text(stream, file, dim, None, wanted)
        place = stream.tell()
        second = stream.readline(_LONGEST_LINE)
        stream.seek(place)
        if _are_numbers(second.split()[-dim:], dim):
            return _parse_text(stream, file, dim, count, wanted)
        return _parse_binary(stream, file, count, dim, wanted)


def _are_numbers(words: list[bytes], count: int) -> bool:
    try:
        return len([float(word) for word in words]) == count
    except ValueError:
        return False


def _parse_text(
    stream: Any, file: Path, dim: int, count: int | None, wanted: dict[str, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of word2vec text (`count` is what its first line says) or of GloVe text (`count` is None)."""
    rows = np.zeros((len(wanted), dim), dtype=np.float32)
    known = np.zeros(len(wanted), dtype=bool)
    words = 0
    for number, raw in enumerate(stream, start=1 if count is None else 2):
        fields = raw.rstrip().rsplit(b" ", dim)  # from the right: some of GloVe's words hold spaces
        where = f"{file} line {number}"
        if len(fields) != dim + 1:
            if not raw.strip():
                continue
            raise UserError(where, rule=f"has {len(fields) - 1} numbers where the first line has {dim}")
        words += 1
        index = wanted.get(fields[0].decode("utf-8", "replace"))
        if index is None or known[index]:
            continue
        try:
            row = np.array([float(field) for field in fields[1:]], dtype=np.float32)
        except ValueError as error:
            raise UserError(where, rule=f"must hold a word and {dim} numbers: {error}") from None
        _need_finite(row, where)
        rows[index], known[index] = row, True
    if count is not None and words != count:
        raise UserError(str(file), rule=f"promises {count:,} vectors in its first line and has {words:,}", remedy=_CUT)
    return rows, known


def _parse_binary(
    stream: Any, file: Path, count: int, dim: int, wanted: dict[str, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rows = np.zeros((len(wanted), dim), dtype=np.float32)
    known = np.zeros(len(wanted), dtype=bool)
    buffer, at, width = b"", 0, 4 * dim
    for number in range(1, count + 1):
        while (space := buffer.find(b" ", at)) < 0 or len(buffer) < space + 1 + width:
            block = stream.read(1 << 20)
            if not block or (space < 0 and len(buffer) - at > 1 << 16):
                rule = f"ends or goes astray at word {number:,} of {count:,}"
                raise UserError(str(file), rule=rule, remedy=f"is it word2vec binary? {_CUT}")
            buffer, at = buffer[at:] + block, 0
        index = wanted.get(buffer[at:space].lstrip(b"\n").decode("utf-8", "replace"))
        at = space + 1 + width
        if index is not None and not known[index]:
            row = np.frombuffer(buffer, dtype="<f4", count=dim, offset=space + 1)
            _need_finite(row, f"{file} word {number}")
            rows[index], known[index] = row, True
    if buffer[at:].strip(b"\n") or stream.read(2).strip(b"\n"):
        raise UserError(str(file), rule=f"promises {count:,} vectors in its first line and has more", remedy=_CUT)
    return rows, known


def _need_finite(row: NDArray[np.float32], where: str) -> None:
    if not np.isfinite(row).all():
        raise UserError(where, rule=f"must hold numbers, not {row[~np.isfinite(row)][0]}")
