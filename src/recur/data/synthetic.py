"""Embedded corpora: generated in a moment, with a known best possible score."""

import math
import random
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le, Lt

from recur.data.cache import TokenCache, content_key, maker_key
from recur.data.checks import Column, Seed, hold
from recur.data.readers import Origin, Rows
from recur.errors import UserError

Texts = Annotated[int, Ge(1), Le(10_000_000)]  # a split is made in memory, and in minutes
Tokens = Annotated[int, Ge(1), Le(1_000_000_000)]
Share = Annotated[float, Ge(0), Le(1)]
_GOOD = ("brilliant", "charming", "delightful", "excellent", "gripping", "great", "moving", "superb", "touching")
_BAD = ("awful", "boring", "clumsy", "dreadful", "dull", "feeble", "hollow", "terrible", "tedious")
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

    A share `short` of the reviews is one short sentence about the film: `this film is terrible`, `a great film.`, `the
    ending was not really dull.` The others are longer. There the verdict is said once, in one of four forms; `x` and
    `y` are clauses of opposite opinion, such as `the plot was not really boring` (a negated clause means the opposite
    of its adjective):

    - `x`: the review is of x's opinion;
    - `x , but y`: of y's;
    - `although x , y`: of y's;
    - `x , although y`: of x's.

    Before and after come distractors, opinions of other people or on other things (`my brother found it superb`, `the
    poster was dull`), and neutral sentences, which move the verdict away from the end. Then `noise` of the labels are
    turned round, all of longer reviews: exactly that share of each split, so that no classifier is right more often
    than `1 - noise`, but by chance. What a short sentence says is never contradicted by its label.

    Exchanging the two clauses of a verdict turns the label round and leaves the words the same: there a bag of words is
    at chance. Where the verdict is a single clause its adjective is a hint, unless half of them are negated. By default
    a linear classifier on a bag of words is right about 60 times in 100.

    Args:
        train_size: texts of the training split.
        val_size: texts of the validation split.
        test_size: texts of the test split.
        short: share of reviews that are one short sentence.
        gap: most neutral sentences on each side of the verdict.
        distractors: most distractors on each side of the verdict.
        contrast: share of reviews with two clauses.
        negation: share of clauses that are negated.
        noise: share of labels turned round, less than half of the longer reviews.
        seed: which corpus.

    Raises:
        UserError: a share or count out of range.
    """

    class_names = ("negative", "positive")

    def __init__(
        self,
        train_size: Texts = 8000,
        val_size: Texts = 1000,
        test_size: Texts = 2000,
        *,
        short: Share = 0.15,
        gap: Annotated[int, Ge(0), Le(len(_FILLERS))] = 2,
        distractors: Annotated[int, Ge(0), Le(1000)] = 1,
        contrast: Share = 0.7,
        negation: Share = 0.3,
        noise: Annotated[float, Ge(0), Lt(0.5)] = 0.05,
        seed: Seed = 0,
    ) -> None:
        """Check the settings; text is made when it is read."""
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        hold(SyntheticReviews.__init__, locals(), "data.synthetic")
        most_noise = round(0.499 * (1 - short), 6)
        if noise > most_noise:
            raise UserError("data.synthetic.noise", noise, f"must be at most {most_noise}, half of the longer reviews")
        self.short, self.gap, self.distractors = short, gap, distractors
        self.contrast, self.negation, self.noise, self.seed = contrast, negation, noise, seed

    def split(self, name: str) -> "SyntheticSplit":
        """One of `train`, `val`, `test`."""
        return SyntheticSplit(self, name)

    def review(self, rng: random.Random) -> tuple[str, bool]:
        """One text of the longer kind and whether it is positive, before noise."""
        verdict, positive = self._verdict(rng)
        before = self._surroundings(rng)
        after = self._surroundings(rng)
        return " ".join(f"{sentence}." for sentence in [*before, verdict, *after]), positive

    def short_review(self, rng: random.Random) -> tuple[str, bool]:
        """One short sentence and whether it is positive."""
        good = rng.random() < 0.5
        if rng.random() < 0.15:  # without a verb there is nothing to negate
            article = rng.choice(("a", "what a"))
            text = f"{article} {rng.choice(_GOOD if good else _BAD)} {rng.choice(_SUBJECTS)}"
        else:
            text = self._clause(rng, good, rng.choice(("this", "the")), rng.choice(("is", "was")))
        return text + rng.choice((".", "")), good

    def _verdict(self, rng: random.Random) -> tuple[str, bool]:
        first = rng.random() < 0.5
        x = self._clause(rng, first)
        if rng.random() >= self.contrast:
            return x, first
        y = self._clause(rng, not first)
        return rng.choice(
            ((f"{x}, but {y}", not first), (f"although {x}, {y}", not first), (f"{x}, although {y}", first))
        )

    def _clause(self, rng: random.Random, good: bool, article: str = "the", verb: str = "was") -> str:
        negated = rng.random() < self.negation
        adjective = rng.choice(_GOOD if good != negated else _BAD)
        words = [article, rng.choice(_SUBJECTS), verb, "not" if negated else "", rng.choice(_DEGREES), adjective]
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
        """Choose the split."""
        self._corpus = corpus
        self._name = name

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the settings, which with `recur.data.cache.VERSION` determine the text."""
        return content_key({**maker_key(self._corpus), "split": self._name, **vars(self._corpus)})

    @property
    def ceiling(self) -> dict[str, float]:
        """Best possible accuracy, of this split's own labels."""
        return {"accuracy": 1.0 - self._turned / self._corpus.sizes[self._name]}

    @property
    def _turned(self) -> int:
        """How many labels are turned round."""
        corpus, size = self._corpus, self._corpus.sizes[self._name]
        return min(round(corpus.noise * size), size - round(corpus.short * size))

    def read(self, columns: Sequence[Column] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Generate the rows."""
        corpus, size = self._corpus, self._corpus.sizes[self._name]
        rng = random.Random(f"{corpus.seed} {self._name}")  # noqa: S311 - a corpus, not a secret
        short = set(rng.sample(range(size), round(corpus.short * size)))
        pairs = [corpus.short_review(rng) if row in short else corpus.review(rng) for row in range(size)]
        labels = [int(positive) for _, positive in pairs]
        longer = [row for row in range(size) if row not in short]
        for row in rng.sample(longer, self._turned):
            labels[row] = 1 - labels[row]
        values: dict[str, list[Any]] = {"text": [text for text, _ in pairs], "label": labels}
        names = {"label": list(corpus.class_names)}
        return Rows(values, ["text", "label"], [Origin(f"synthetic reviews, {self._name},", 0, size)], {}, names)


# ------------------------------------------------------------------------------------------------- for language models
_NOUNS = {  # singular: plural, pronoun of the singular; the first are the most frequent
    "king": ("kings", "he"),
    "queen": ("queens", "she"),
    "fox": ("foxes", "it"),
    "miller": ("millers", "he"),
    "witch": ("witches", "she"),
    "crow": ("crows", "it"),
    "boy": ("boys", "he"),
    "girl": ("girls", "she"),
    "wolf": ("wolves", "it"),
    "baker": ("bakers", "he"),
}
_KINDS = ("old", "little", "clever", "hungry", "brave", "sleepy")
_TRANSITIVE = {"sees": "see", "follows": "follow", "helps": "help", "hears": "hear", "fears": "fear", "thanks": "thank"}
_INTRANSITIVE = {"sleeps": "sleep", "sings": "sing", "waits": "wait", "laughs": "laugh", "dances": "dance"}
_PLACES = ("forest", "garden", "castle", "mill", "kitchen")
_TIMES = ("today", "again", "quietly", "soon")


class SyntheticText:
    """Little stories from a probabilistic grammar, whose best possible perplexity is known.

    A line is a sentence, a blank line parts two stories. Verbs agree with their subject across relative clauses and
    conjunctions (`the foxes that the queen fears wait and sing .`), and a pronoun that begins a sentence agrees with
    the subject of the one before: to predict the text well, a model has to remember number and gender for some time.

    Every text has one derivation, so the probability of a text is the product of the probabilities of the choices made
    in writing it. Their logarithms are added up while sampling: divided by the number of tokens they are the loss that
    no model can beat on that text, but by chance.

    Args:
        train_size: tokens of the training split, `<eos>` included; the last story's sentence is finished.
        val_size: tokens of the validation split.
        test_size: tokens of the test split.
        seed: which corpus.

    Raises:
        UserError: a split without tokens, or of more than this machine makes in minutes.
    """

    def __init__(
        self, train_size: Tokens = 400_000, val_size: Tokens = 40_000, test_size: Tokens = 40_000, *, seed: Seed = 0
    ) -> None:
        """Check the settings; text is made when it is read."""
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        hold(SyntheticText.__init__, locals(), "data.synthetic")
        self.seed = seed

    def split(self, name: str) -> "SyntheticTextSplit":
        """One of `train`, `val`, `test`."""
        return SyntheticTextSplit(self, name)


class SyntheticTextSplit:
    """A split of a synthetic text, read like a `recur.data.sources.Split`; its rows are lines."""

    def __init__(self, corpus: SyntheticText, name: str) -> None:
        """Choose the split."""
        self._corpus = corpus
        self._name = name

    def fingerprint(self, cache: TokenCache) -> str:
        """Hash of the settings, which with `recur.data.cache.VERSION` determine the text."""
        return content_key({**maker_key(self._corpus), "split": self._name, **vars(self._corpus)})

    def write(self) -> tuple[list[str], float]:
        """The lines, and minus the logarithm of their probability in nats."""
        writer = _Writer(random.Random(f"{self._corpus.seed} {self._name}"))  # noqa: S311 - a corpus, not a secret
        lines: list[str] = []
        tokens = 0
        while tokens < self._corpus.sizes[self._name]:
            lines.append(writer.line())
            tokens += len(lines[-1].split()) + 1
        return lines, writer.nats

    @property
    def nats(self) -> float:
        """What a model that knew the grammar would lose on the whole split."""
        return self.write()[1]

    def read(self, columns: Sequence[Column] | None = None, *, allow_pickle: bool = False) -> Rows:
        """Generate the rows."""
        lines, _ = self.write()
        return Rows({"text": lines}, ["text"], [Origin(f"synthetic text, {self._name},", 0, len(lines))])


class _Writer:
    """Writes line after line, adding up what each choice cost.

    Attributes:
        nats: minus the logarithm of the probability of everything written so far.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._topic: str | None = None  # pronoun of the last sentence's subject
        self.nats = 0.0

    def _chance(self, p: float) -> bool:
        yes = self._rng.random() < p
        self.nats -= math.log(p if yes else 1 - p)
        return yes

    def _draw_word(self, words: Sequence[str]) -> str:
        """One of the words: the i-th with probability proportional to 1 / (i + 1)."""
        weights = [1 / (i + 1) for i in range(len(words))]
        index = self._rng.choices(range(len(words)), weights)[0]
        self.nats -= math.log(weights[index] / sum(weights))
        return words[index]

    def line(self) -> str:
        """A sentence, or nothing: the end of a story."""
        if self._topic is not None and self._chance(0.12):
            self._topic = None
            return ""
        if self._topic is not None and self._chance(0.3):
            words, pronoun = [self._topic], self._topic
        else:
            words, pronoun = self._noun_phrase(deep=False)
        words += self._verb_phrase(pronoun == "they")
        if self._chance(0.25):
            words += ["and", *self._verb_phrase(pronoun == "they")]
        self._topic = pronoun
        return " ".join([*words, "."])

    def _noun_phrase(self, deep: bool) -> tuple[list[str], str]:
        """Words, and the pronoun they can be taken up by."""
        many = self._chance(0.4)
        words = [self._draw_word(("the", "some", "three") if many else ("the", "one", "this"))]
        if self._chance(0.3):
            words.append(self._draw_word(_KINDS))
        noun = self._draw_word(list(_NOUNS))
        plural, pronoun = _NOUNS[noun]
        words.append(plural if many else noun)
        if not deep and self._chance(0.25):  # a clause about it, with a verb that agrees with it or with another
            words.append("that")
            if self._chance(0.5):
                words += [self._verb(_TRANSITIVE, many), *self._noun_phrase(deep=True)[0]]
            else:
                inner, who = self._noun_phrase(deep=True)
                words += [*inner, self._verb(_TRANSITIVE, who == "they")]
        return words, "they" if many else pronoun

    def _verb_phrase(self, many: bool) -> list[str]:
        if self._chance(0.6):
            words = [self._verb(_TRANSITIVE, many), *self._noun_phrase(deep=True)[0]]
        else:
            words = [self._verb(_INTRANSITIVE, many)]
            if self._chance(0.4):
                words += ["in", "the", self._draw_word(_PLACES)]
        if self._chance(0.2):
            words.append(self._draw_word(_TIMES))
        return words

    def _verb(self, verbs: dict[str, str], many: bool) -> str:
        verb = self._draw_word(list(verbs))
        return verbs[verb] if many else verb
