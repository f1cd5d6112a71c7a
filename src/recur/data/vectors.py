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
from recur.data.sources import Split
from recur.data.text import Tokenizer

log = logging.getLogger(__name__)
_PICKLES = (".pkl", ".pickle", ".model", ".kv", ".pt", ".pth", ".npy", ".joblib")
_FASTTEXT = b"\xba\x16\x4f\x2f"
_SENTENCE = 10_000  # gensim drops what a longer sentence has beyond this, without a word


@dataclass(frozen=True)
class WordVectors:
    """A vector for each token id.

    Attributes:
        matrix: `(vocab_size, dim)` float32. Words that were not found have random vectors of like size.
        found: which ids were found, `(vocab_size,)`.
        source: what they came from.
    """

    matrix: Tensor
    found: NDArray[np.bool_]
    source: str

    def coverage(self, counts: NDArray[np.int64]) -> str:
        """How much of the vocabulary and of the text was found; `counts` says how often each id occurs."""
        words, text = self.found.mean(), counts[self.found].sum() / max(1, counts.sum())
        return (
            f"{self.matrix.shape[1]} numbers a word from {self.source}: {self.found.sum():,} of {len(self.found):,} "
            f"words found ({words:.1%}), {text:.1%} of the training text"
        )


def load_vectors(path: str | os.PathLike[str], tokenizer: Tokenizer, cache: TokenCache, seed: int = 0) -> WordVectors:
    """Vectors of a tokenizer's vocabulary from a file.

    Args:
        path: word2vec text or binary, GloVe, or fastText `.vec`.
        tokenizer: whose vocabulary; words are looked up as they are spelled there.
        cache: keeps the rows found, so that a big file is read once.
        seed: of the vectors of words that were not found.

    Raises:
        ValueError: no such file, a format that needs unpickling, a line of another length, nothing found.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"no such file of word vectors: {str(path)!r}")
    if file.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{path} looks like a pickle or an array, which could run code or says no words: save it as word2vec text "
            "(gensim: model.wv.save_word2vec_format(file))"
        )
    key = {"vectors": Split((str(file),)).fingerprint(cache), "vocabulary": content_key(tokenizer.vocabulary)}

    def build(folder: Path) -> None:
        rows, found = _parse(file, {word: index for index, word in enumerate(tokenizer.vocabulary)})
        if not found.any():
            raise ValueError(f"{path} has a vector for none of the {tokenizer.vocab_size} words of the vocabulary")
        np.save(folder / "vectors.npy", rows)
        np.save(folder / "found.npy", found)

    return _from_entry(cache.entry(key, build), file.name, seed)


def train_word2vec(
    corpora: Sequence[tuple[Ragged, NDArray[np.int64]]],
    tokenizer: Tokenizer,
    cache: TokenCache,
    identity: Mapping[str, Any],
    *,
    dim: int = 100,
    window: int = 5,
    epochs: int = 5,
    min_count: int = 2,
    skip_gram: bool = False,
    seed: int = 0,
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
        ValueError: gensim is not installed, a setting out of range, too little text.
    """
    for name, value in (("dim", dim), ("window", window), ("epochs", epochs), ("min_count", min_count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"data.word2vec.{name} is a whole number of at least 1, got {value!r}")
    settings = {"dim": dim, "window": window, "epochs": epochs, "min_count": min_count, "sg": skip_gram, "seed": seed}

    def build(folder: Path) -> None:
        try:
            from gensim.models import Word2Vec
        except ImportError:
            raise ValueError("data.vectors=train needs gensim: pip install 'recur[word2vec]'") from None
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
            raise ValueError(f"too little text for word2vec with min_count {min_count}: {error}") from None
        rows = np.zeros((tokenizer.vocab_size, dim), dtype=np.float32)
        found = np.zeros(tokenizer.vocab_size, dtype=bool)
        for index, word in enumerate(tokenizer.vocabulary):
            if word in model.wv:
                rows[index], found[index] = model.wv[word], True
        np.save(folder / "vectors.npy", rows)
        np.save(folder / "found.npy", found)

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
    """Fill up what was not found with random vectors whose numbers have the found ones' mean and spread."""
    rows, found = np.load(folder / "vectors.npy"), np.load(folder / "found.npy")
    random = np.random.default_rng(seed)
    rows[~found] = random.normal(rows[found].mean(), rows[found].std(), (int((~found).sum()), rows.shape[1]))
    return WordVectors(torch.from_numpy(rows), found, source)


def _parse(file: Path, wanted: dict[str, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of the wanted words."""
    with file.open("rb") as stream:
        start = stream.read(4096)
        if start[:1] == b"\x80" or start[:4] == _FASTTEXT or start[:2] in (b"\x1f\x8b", b"PK"):
            kind = {b"\x80": "a pickle", b"\xba": "fastText's own binary"}.get(start[:1], "compressed")
            raise ValueError(f"{file} is {kind}: give word2vec text or binary, GloVe text, or fastText's .vec")
        first = start.split(b"\n", 1)[0].split()
        headed = len(first) == 2 and first[0].isdigit() and first[1].isdigit()
        dim = int(first[1]) if headed else len(first) - 1
        if dim < 1:
            raise ValueError(f"{file} holds no word vectors: its first line is {start[:40]!r}")
        stream.seek(0)
        if headed:
            stream.readline()
            second = start.split(b"\n", 2)[1] if start.count(b"\n") else b""
            if start.count(b"\n") < 2 or not _are_numbers(second.split()[-dim:], dim):
                return _parse_binary(stream, file, int(first[0]), dim, wanted)
        return _parse_text(stream, file, dim, 2 if headed else 1, wanted)


def _are_numbers(words: list[bytes], count: int) -> bool:
    try:
        return len([float(word) for word in words]) == count
    except ValueError:
        return False


def _parse_text(
    stream: Any, file: Path, dim: int, line: int, wanted: dict[str, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rows = np.zeros((len(wanted), dim), dtype=np.float32)
    found = np.zeros(len(wanted), dtype=bool)
    for number, raw in enumerate(stream, start=line):
        fields = raw.rstrip().rsplit(b" ", dim)  # from the right: some of GloVe's words hold spaces
        if len(fields) != dim + 1:
            if not raw.strip():
                continue
            raise ValueError(f"{file} line {number}: {len(fields) - 1} numbers where the first line has {dim}")
        index = wanted.get(fields[0].decode("utf-8", "replace"))
        if index is None or found[index]:
            continue
        try:
            row = np.array([float(field) for field in fields[1:]], dtype=np.float32)
        except ValueError as error:
            raise ValueError(f"{file} line {number}: {error}") from None
        _need_finite(row, f"{file} line {number}")
        rows[index], found[index] = row, True
    return rows, found


def _parse_binary(
    stream: Any, file: Path, count: int, dim: int, wanted: dict[str, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rows = np.zeros((len(wanted), dim), dtype=np.float32)
    found = np.zeros(len(wanted), dtype=bool)
    buffer, at, width = b"", 0, 4 * dim
    for number in range(1, count + 1):
        while (space := buffer.find(b" ", at)) < 0 or len(buffer) < space + 1 + width:
            block = stream.read(1 << 20)
            if not block or (space < 0 and len(buffer) - at > 1 << 16):
                raise ValueError(f"{file} ends or goes astray at word {number} of {count}: is it word2vec binary?")
            buffer, at = buffer[at:] + block, 0
        index = wanted.get(buffer[at:space].lstrip(b"\n").decode("utf-8", "replace"))
        at = space + 1 + width
        if index is not None and not found[index]:
            row = np.frombuffer(buffer, dtype="<f4", count=dim, offset=space + 1)
            _need_finite(row, f"{file} word {number}")
            rows[index], found[index] = row, True
    return rows, found


def _need_finite(row: NDArray[np.float32], where: str) -> None:
    if not np.isfinite(row).all():
        raise ValueError(f"{where}: a word vector holds {row[~np.isfinite(row)][0]}, not a number")
