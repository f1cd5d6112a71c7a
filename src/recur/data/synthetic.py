"""Embedded corpora: generated in a moment, with a known best possible score."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recur.data.cache import TokenCache, content_key
from recur.data.sources import Origin, Rows

_GOOD = ("brilliant", "charming", "delightful", "excellent", "gripping", "lovely", "moving", "superb", "touching")
_BAD = ("awful", "boring", "clumsy", "dreadful", "dull", "feeble", "hollow", "horrible", "tedious")
_SUBJECTS = (
    "acting",
    "cast",
    "dialogue",
    "direction",
    "ending",
    "film",
    "music",
    "picture",
    "plot",
    "script",
    "writing",
)
_OTHERS = ("book", "brochure", "poster", "trailer", "soundtrack", "sequel", "remake", "advertisement")
_PEOPLE = ("brother", "neighbour", "cousin", "critic", "colleague", "sister")
_DEGREES = ("", "", "", "really", "quite", "all that", "especially")
_FILLERS = (
    "we saw it on a rainy evening",
    "the hall was half empty",
    "the tickets were for the late show",
    "it runs for about two hours",
    "the story takes place in a small town by the sea",
    "the director has made three films before",
    "two rows behind us somebody was talking",
    "afterwards we walked home along the river",
    "it was shot in black and white",
    "the lead is played by a newcomer",
    "there is a long scene on a train",
    "popcorn was sold at the door",
    "it opened in march",
    "half of it is told in letters",
)


class SyntheticReviews:
    """Film reviews from a small grammar whose verdict depends on the order of the words.

    The verdict is said once, in one of four forms; `x` and `y` are clauses of opposite opinion, such as `the plot was
    not really boring` (a negated clause means the opposite of its adjective):

    - `x`: the review is of x's opinion;
    - `x , but y`: of y's;
    - `although x , y`: of y's;
    - `x , although y`: of x's.

    Before and after come distractors, opinions of other people or on other things (`my brother found it superb`, `the
    poster was dull`), and neutral sentences, which move the verdict away from the end. Then `noise` of the labels are
    turned round: exactly that share of each split, so that no classifier is right more often than `1 - noise`, but by
    chance.

    For any review with two clauses, exchanging them turns the label round and leaves the words the same, and a clause
    alone is negated half of the time: a linear classifier on a bag of words is at chance.

    Args:
        train: texts of the training split.
        val: texts of the validation split.
        test: texts of the test split.
        gap: most neutral sentences on each side of the verdict.
        distractors: most distractors on each side of the verdict.
        contrast: share of reviews with two clauses.
        negation: share of clauses that are negated.
        noise: share of labels turned round, below .5.
        seed: which corpus.

    Raises:
        ValueError: a share or count out of range.
    """

    class_names = ("negative", "positive")

    def __init__(
        self,
        train: int = 8000,
        val: int = 1000,
        test: int = 2000,
        *,
        gap: int = 2,
        distractors: int = 1,
        contrast: float = 0.7,
        negation: float = 0.5,
        noise: float = 0.05,
        seed: int = 0,
    ) -> None:
        """Check the settings; text is made when it is read."""
        for name, count, least in (
            ("train", train, 1),
            ("val", val, 1),
            ("test", test, 1),
            ("gap", gap, 0),
            ("distractors", distractors, 0),
        ):
            if count < least:
                raise ValueError(f"synthetic {name} must be at least {least}, got {count}")
        for name, share, most in (("contrast", contrast, 1.0), ("negation", negation, 1.0), ("noise", noise, 0.499)):
            if not 0 <= share <= most:
                raise ValueError(f"synthetic {name} must lie between 0 and {most}, got {share}")
        self.sizes = {"train": train, "val": val, "test": test}
        self.gap, self.distractors = gap, distractors
        self.contrast, self.negation, self.noise, self.seed = contrast, negation, noise, seed

    @property
    def ceiling(self) -> dict[str, float]:
        """Best possible accuracy."""
        return {"accuracy": 1.0 - self.noise}

    def split(self, name: str) -> "SyntheticSplit":
        """One of `train`, `val`, `test`."""
        return SyntheticSplit(self, name)

    def review(self, rng: random.Random) -> tuple[str, bool]:
        """One text and whether it is positive, before noise."""
        verdict, positive = self._verdict(rng)
        before = self._surroundings(rng)
        after = self._surroundings(rng)
        return " ".join(f"{sentence}." for sentence in [*before, verdict, *after]), positive

    def _verdict(self, rng: random.Random) -> tuple[str, bool]:
        first = rng.random() < 0.5
        x = self._clause(rng, first)
        if rng.random() >= self.contrast:
            return x, first
        y = self._clause(rng, not first)
        return rng.choice(
            ((f"{x}, but {y}", not first), (f"although {x}, {y}", not first), (f"{x}, although {y}", first))
        )

    def _clause(self, rng: random.Random, good: bool) -> str:
        negated = rng.random() < self.negation
        adjective = rng.choice(_GOOD if good != negated else _BAD)
        words = ["the", rng.choice(_SUBJECTS), "was", "not" if negated else "", rng.choice(_DEGREES), adjective]
        return " ".join(word for word in words if word)

    def _surroundings(self, rng: random.Random) -> list[str]:
        sentences = rng.sample(_FILLERS, rng.randint(0, self.gap)) if self.gap else []
        for _ in range(rng.randint(0, self.distractors)):
            adjective = rng.choice(_GOOD + _BAD)
            negation = "not " if rng.random() < self.negation else ""
            if rng.random() < 0.5:
                sentences.append(f"my {rng.choice(_PEOPLE)} did {negation}find it {adjective}")
            else:
                sentences.append(f"the {rng.choice(_OTHERS)} was {negation}{adjective}")
        rng.shuffle(sentences)
        return sentences


class SyntheticSplit:
    """A split of a synthetic corpus, read like a `recur.data.sources.Split`."""

    def __init__(self, corpus: SyntheticReviews, name: str) -> None:
        """Name the split."""
        self._corpus = corpus
        self._name = name

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the settings and of this file, which together determine the text."""
        code = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16).hexdigest()
        return content_key({"code": code, "split": self._name, **vars(self._corpus)})

    def read(self, columns: Sequence[str] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Generate the rows."""
        corpus, size = self._corpus, self._corpus.sizes[self._name]
        rng = random.Random(f"{corpus.seed} {self._name}")  # noqa: S311 - a corpus, not a secret
        pairs = [corpus.review(rng) for _ in range(size)]
        labels = [int(positive) for _, positive in pairs]
        for row in rng.sample(range(size), round(corpus.noise * size)):
            labels[row] = 1 - labels[row]
        values: dict[str, list[Any]] = {"text": [text for text, _ in pairs], "label": labels}
        names = {"label": list(corpus.class_names)}
        return Rows(values, ["text", "label"], [Origin(f"synthetic reviews, {self._name},", 0, size)], {}, names)
