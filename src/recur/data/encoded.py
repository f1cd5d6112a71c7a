"""One split of labelled texts as the cache holds it: written once, mapped ever after."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recur.data.cache import Ragged, id_dtype
from recur.data.checks import Column
from recur.data.readers import Checked, Rows
from recur.data.text import Tokenizer
from recur.errors import UserError

_ENCODE_AT_ONCE = 2000  # texts


class Encoded:
    """One split as the cache holds it.

    Attributes:
        tokens: ids of each text.
        raw: UTF-8 bytes of each text.
        labels: class of each text, -1 where it has none, `(rows,)` int64.
        numbers: each text's row number in its source, from 0, `(rows,)` int64.
        unknown: tokens of each text that are not in the vocabulary, `(rows,)` int64.
        digests: hash of each text, `(rows,)` uint64, to find the same text elsewhere.
        targets: of pseudo-labelled texts the probability of each class, `(rows, classes)` float32; None of others.
        facts: rows skipped, by reason, and other plain values.
    """

    def __init__(self, folder: Path) -> None:
        """Map an entry of the cache."""
        self.tokens = Ragged.open(folder, "tokens")
        self.raw = Ragged.open(folder, "raw")
        self.labels: NDArray[np.int64] = np.load(folder / "labels.npy")
        self.numbers: NDArray[np.int64] = np.load(folder / "numbers.npy")
        self.unknown: NDArray[np.int64] = np.load(folder / "unknown.npy")
        self.digests: NDArray[np.uint64] = np.load(folder / "digests.npy")
        targets = folder / "targets.npy"
        self.targets: NDArray[np.float32] | None = np.load(targets) if targets.exists() else None
        self.facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())

    @property
    def skipped(self) -> str:
        """How many rows were left out, and why; empty where none were."""
        return "; ".join(f"{count} x {reason}" for reason, count in self.facts["skipped"].items())


def write_split(
    folder: Path, good: Checked, labels: NDArray[np.int64], rows: Rows, tokenizer: Tokenizer, column: Column
) -> None:
    """Encode the texts of a split and write what `Encoded` reads.

    Args:
        folder: of the cache's entry.
        good: the texts.
        labels: class of each, -1 where it has none.
        rows: as read, from which `good` was chosen.
        tokenizer: makes the ids.
        column: that held the texts, for a message.

    Raises:
        UserError: a text without tokens.
    """
    unknown: list[int] = []

    def encoded() -> Iterator[NDArray[np.int32]]:
        for start in range(0, len(good.texts), _ENCODE_AT_ONCE):
            for ids in tokenizer.encode_batch(good.texts[start : start + _ENCODE_AT_ONCE]):
                unknown.append(int((ids == tokenizer.unk_id).sum()))
                yield ids

    lengths = Ragged.save(folder, "tokens", encoded(), id_dtype(tokenizer.vocab_size))
    if not lengths.all():
        where = rows.where(int(good.numbers[int(lengths.argmin())]))
        raise UserError(f"{where}:", rule=f"column {column!r} has no token", remedy="leave the row out")
    raw = [text.encode() for text in good.texts]
    Ragged.save(folder, "raw", (np.frombuffer(text, dtype=np.uint8) for text in raw), np.uint8)
    digests = b"".join(hashlib.blake2b(text.strip(), digest_size=8).digest() for text in raw)
    np.save(folder / "digests.npy", np.frombuffer(digests, dtype=np.uint64))
    np.save(folder / "unknown.npy", np.array(unknown, dtype=np.int64))
    np.save(folder / "labels.npy", labels)
    np.save(folder / "numbers.npy", good.numbers)
    (folder / "facts.json").write_text(json.dumps({"skipped": good.skipped, "rows": len(rows)}))
