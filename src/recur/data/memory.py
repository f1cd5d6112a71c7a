"""Long-range memory tasks, made in a moment: how far apart two things stand is a setting, the best score is known.

Five tasks label a text (`DelayedRecall`, `Adding`, `Parity`, `BracketDepth` for `SentimentData`) or continue one
(`Copy` for `LanguageData`). A model that solves them has carried something over `gap` tokens; one that does not is at
the rate of the most frequent class. They are unit tests for a new cell as well.

To add a task: a class with `sizes`, `seed`, `class_names`, `ceiling` and `example(rng)`, and a file in `conf/data`.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from recur.data.cache import TokenCache, content_key, maker_key
from recur.data.readers import Origin, Rows
from recur.errors import UserError

_COUNTRIES = {
    "france": "french",
    "italy": "italian",
    "japan": "japanese",
    "poland": "polish",
    "sweden": "swedish",
    "spain": "spanish",
    "korea": "korean",
    "norway": "norwegian",
}
_FILLERS = ("and", "then", "we", "moved", "on", "to", "another", "town", "near", "the", "sea", "for", "some", "years")


def _check(least: dict[str, tuple[int, int]]) -> None:
    for name, (value, smallest) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise UserError(f"data.synthetic.{name}", value, f"must be a whole number of at least {smallest}")


class MemoryTask(ABC):
    """A text with one label that depends on something far back.

    Args:
        train_size: texts of the training split.
        val_size: texts of the validation split.
        test_size: texts of the test split.
        gap: tokens over which something must be carried.
        seed: which corpus.

    Raises:
        UserError: a count out of range.
    """

    class_names: tuple[str, ...]

    def __init__(
        self, train_size: int = 4000, val_size: int = 1000, test_size: int = 1000, *, gap: int = 10, seed: int = 0
    ) -> None:
        sizes = {"train_size": (train_size, 1), "val_size": (val_size, 1), "test_size": (test_size, 1)}
        _check(sizes | {"gap": (gap, 0), "seed": (seed, 0)})
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.gap, self.seed = gap, seed

    @property
    def ceiling(self) -> dict[str, float]:
        """Best possible accuracy: every label follows from its text."""
        return {"accuracy": 1.0}

    def split(self, name: str) -> "MemorySplit":
        """One of `train`, `val`, `test`."""
        return MemorySplit(self, name)

    @abstractmethod
    def example(self, rng: random.Random) -> tuple[str, int]:
        """One text and its label."""


class MemorySplit:
    """A split of a memory task, read like a `recur.data.sources.Split`."""

    def __init__(self, task: MemoryTask, name: str) -> None:
        self._task, self._name = task, name

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the settings, which with `recur.data.cache.VERSION` determine the text."""
        return content_key({**maker_key(self._task), "split": self._name, **vars(self._task)})

    def read(self, columns: Sequence[str] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Generate the rows."""
        size = self._task.sizes[self._name]
        rng = random.Random(f"{self._task.seed} {self._name}")  # noqa: S311 - a corpus, not a secret
        pairs = [self._task.example(rng) for _ in range(size)]
        values: dict[str, list[Any]] = {"text": [text for text, _ in pairs], "label": [label for _, label in pairs]}
        names = {"label": list(self._task.class_names)}
        origin = Origin(f"{type(self._task).__name__}, {self._name},", 0, size)
        return Rows(values, ["text", "label"], [origin], {}, names)


class DelayedRecall(MemoryTask):
    """`i grew up in france ... i speak fluent`: the language, `gap` neutral words after the country.

    The country comes among the first five tokens, so that it stands `gap` + 3 tokens before the end.

    Args:
        train_size: texts of the training split.
        val_size: texts of the validation split.
        test_size: texts of the test split.
        gap: neutral words between the country and the question.
        classes: countries, from 2 to 8.
        pads: tokens `pad` after the text, as a padded batch has them.
        seed: which corpus.
    """

    def __init__(
        self,
        train_size: int = 4000,
        val_size: int = 1000,
        test_size: int = 1000,
        *,
        gap: int = 10,
        classes: int = 4,
        pads: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(train_size, val_size, test_size, gap=gap, seed=seed)
        _check({"classes": (classes, 2), "pads": (pads, 0)})
        if classes > len(_COUNTRIES):
            raise UserError("data.synthetic.classes", classes, f"must be at most {len(_COUNTRIES)}")
        self.classes, self.pads, self.class_names = classes, pads, tuple(list(_COUNTRIES.values())[:classes])

    def example(self, rng: random.Random) -> tuple[str, int]:
        """One text and its label."""
        label = rng.randrange(len(self.class_names))
        words = ["i", "grew", "up", "in", list(_COUNTRIES)[label]]
        words += [rng.choice(_FILLERS) for _ in range(self.gap)]
        return " ".join([*words, "i", "speak", "fluent", *["pad"] * self.pads]), label


class Adding(MemoryTask):
    """Two of many digits are marked with `+`; the label is their sum (Hochreiter and Schmidhuber 1997, as classes).

    One mark lies in each half of `gap` + 2 digits from 0 to 4; the sum has nine values, of which 4 comes up one time in
    five.
    """

    class_names = tuple(str(total) for total in range(9))

    def example(self, rng: random.Random) -> tuple[str, int]:
        """One text and its label."""
        length = self.gap + 2
        digits = [rng.randrange(5) for _ in range(length)]
        first, second = rng.randrange(length // 2), rng.randrange(length // 2, length)
        words = []
        for index, digit in enumerate(digits):
            words += ["+", str(digit)] if index in (first, second) else [str(digit)]
        return " ".join(words), digits[first] + digits[second]


class Parity(MemoryTask):
    """`gap` + 1 bits; the label says whether the number of ones is odd. Every bit counts, the first as the last."""

    class_names = ("even", "odd")

    def example(self, rng: random.Random) -> tuple[str, int]:
        """One text and its label."""
        bits = [rng.randrange(2) for _ in range(self.gap + 1)]
        return " ".join(map(str, bits)), sum(bits) % 2


class BracketDepth(MemoryTask):
    """Brackets that open and close; the label is how many are still open at the end, at most four.

    A text has `gap` + 1 or `gap` + 2 brackets: the parity of its length would give the parity of the answer away.
    """

    class_names = tuple(str(depth) for depth in range(5))

    def example(self, rng: random.Random) -> tuple[str, int]:
        """One text and its label."""
        depth, words = 0, []
        for _ in range(self.gap + 1 + rng.randrange(2)):
            opens = depth == 0 or (depth < len(self.class_names) - 1 and rng.random() < 0.5)
            depth += 1 if opens else -1
            words.append("(" if opens else ")")
        return " ".join(words), depth


class Copy:
    """Lines `a c b . . . > a c b`: letters, `gap` dots, a mark, and the letters again, for a language model.

    Only the first letters of a line are uncertain, so the best possible loss is known exactly: `length` times the
    logarithm of the number of letters, a line.

    Args:
        train_size: tokens of the training split, `<eos>` included; the last line is finished.
        val_size: tokens of the validation split.
        test_size: tokens of the test split.
        gap: dots between the letters and the mark.
        length: letters to copy.
        letters: different letters, at most 26.
        seed: which corpus.

    Raises:
        UserError: a count out of range.
    """

    def __init__(
        self,
        train_size: int = 100_000,
        val_size: int = 10_000,
        test_size: int = 10_000,
        *,
        gap: int = 10,
        length: int = 4,
        letters: int = 8,
        seed: int = 0,
    ) -> None:
        sizes = {"train_size": (train_size, 1), "val_size": (val_size, 1), "test_size": (test_size, 1)}
        _check(sizes | {"gap": (gap, 0), "seed": (seed, 0)})
        _check({"length": (length, 1), "letters": (letters, 2)})
        if letters > 26:
            raise UserError("data.synthetic.letters", letters, "must be at most 26")
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.gap, self.length, self.letters, self.seed = gap, length, letters, seed

    def split(self, name: str) -> "CopySplit":
        """One of `train`, `val`, `test`."""
        return CopySplit(self, name)


class CopySplit:
    """A split of the copy task, read like a `recur.data.sources.Split`; its rows are lines."""

    def __init__(self, task: Copy, name: str) -> None:
        self._task, self._name = task, name
        line = 2 * task.length + task.gap + 2  # letters twice, dots, the mark, <eos>
        self._lines = -(-task.sizes[name] // line)

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the settings, which with `recur.data.cache.VERSION` determine the text."""
        return content_key({**maker_key(self._task), "split": self._name, **vars(self._task)})

    @property
    def nats(self) -> float:
        """What a model that copies without a fault loses on the whole split."""
        return self._lines * self._task.length * math.log(self._task.letters)

    def read(self, columns: Sequence[str] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Generate the rows."""
        task = self._task
        rng = random.Random(f"{task.seed} {self._name}")  # noqa: S311 - a corpus, not a secret
        lines = []
        for _ in range(self._lines):
            letters = [chr(ord("a") + rng.randrange(task.letters)) for _ in range(task.length)]
            lines.append(" ".join([*letters, *["."] * task.gap, ">", *letters]))
        return Rows({"text": lines}, ["text"], [Origin(f"Copy, {self._name},", 0, len(lines))])
