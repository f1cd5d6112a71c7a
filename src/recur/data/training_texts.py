"""What a classifier trains on: labelled texts, and beside them texts that a model labelled and texts without labels."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recur.data.buckets import Texts
from recur.data.encoded import Encoded


class Beside(NamedTuple):
    """Texts that are trained on beside the labelled ones.

    Attributes:
        name: what they are called, in messages too.
        texts: their token ids.
        numbers: number of each one's row in its source, counted from 1.
        skipped: which rows were left out, in words.
        digests: of each one's content, equal where texts are.
        targets: probability of each class, `(texts, classes)` float32; None where they have neither label nor any.
    """

    name: str
    texts: Texts
    numbers: NDArray[np.int64]
    skipped: str
    digests: NDArray[np.uint64]
    targets: NDArray[np.float32] | None = None

    def facts(self) -> dict[str, str]:
        """What there is to say of them, in plain values."""
        return {self.name: _size(self.texts), **_left_out(self.name, self.skipped)}


class Joined(NamedTuple):
    """What `recur.data.buckets.TextLoader` takes; see there."""

    texts: Texts
    labels: NDArray[np.int64]
    targets: NDArray[np.float32] | None
    numbers: Mapping[str, NDArray[np.int64]]


def joined(
    texts: Texts,
    labels: NDArray[np.int64],
    numbers: Mapping[str, NDArray[np.int64]],
    parts: Sequence[Beside],
    num_classes: int,
) -> Joined:
    """Labelled texts and those beside them, one part after the other.

    Where one part has targets, a label is a target of its class and a text without any has zeros.
    """
    if not parts:
        return Joined(texts, labels, None, numbers)
    every = [labels, *(_labels(part) for part in parts)]
    targets = None
    if any(part.targets is not None for part in parts):
        nothing = [np.zeros((len(part.texts), num_classes), dtype=np.float32) for part in parts]
        given = [zeros if part.targets is None else part.targets for part, zeros in zip(parts, nothing, strict=True)]
        targets = np.concatenate([np.eye(num_classes, dtype=np.float32)[labels], *given])
    return Joined(
        Texts.joined([texts, *(part.texts for part in parts)]),
        np.concatenate(every),
        targets,
        {**numbers, **{f"{part.name} rows": part.numbers for part in parts}},
    )


def _labels(part: Beside) -> NDArray[np.int64]:
    return np.full(len(part.texts), -1, dtype=np.int64) if part.targets is None else part.targets.argmax(1)


def limited(rows: NDArray[np.int64], most: int | None, seed: int) -> NDArray[np.int64]:
    """As many of some rows, in their order; all of them for None."""
    if most is None or most >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def facts(name: str, texts: Texts, encoded: Encoded, rows: NDArray[np.int64], own: bool = True) -> dict[str, str]:
    """What there is to say of the texts of a split, in plain values.

    Args:
        name: of the split.
        texts: their token ids.
        encoded: from which they are.
        rows: where they are in it.
        own: whether to say which rows of it were left out.
    """
    unknown = encoded.unknown[rows].sum() / max(1, encoded.tokens.lengths[rows].sum())
    said = f"{_size(texts)}, longest {int(texts.lengths.max()):,}, {unknown:.2%} unknown words"
    return {name: said, **_left_out(name, encoded.skipped if own else "")}


def _size(texts: Texts) -> str:
    return f"{len(texts):,} texts, {int(texts.lengths.sum()):,} tokens"


def _left_out(name: str, skipped: str) -> dict[str, str]:
    return {f"{name} skipped": skipped} if skipped else {}
