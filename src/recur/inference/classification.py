"""Using a classifier: predictions, and each token's contribution by integrated gradients."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.data.buckets import Texts
from recur.data.tables import is_table
from recur.errors import ABSENT, UserError
from recur.inference.batches import BATCH_TOKENS, as_texts, batches, vectors
from recur.nn.classifier import Classifier
from recur.runs import run as runs

if TYPE_CHECKING:
    from captum.attr import IntegratedGradients

SORTED_TOGETHER = 8192  # texts that are sorted by length and batched together
EXPLAIN_TOKENS = 5000  # integrated gradients read the text some hundred times
PATH_POINTS = 16  # on each piece of the path
PATH_PIECES = 200  # at most
CLIFF = 1e-9  # width of a piece that is not halved further
TOLERANCE = 0.005  # of the logits' difference, or of 1 where that is less


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text.

    Attributes:
        text: as given.
        label: name of the most probable class.
        index: number of that class.
        probabilities: of each class by its name, in the order of the classes.
        tokens: how many tokens the text has.
        read: how many tokens were read; fewer than `tokens` where the run cuts long texts.
        unknown: how many of the tokens read are outside the vocabulary.
    """

    text: str
    label: str
    index: int
    probabilities: dict[str, float]
    tokens: int
    read: int
    unknown: int

    @property
    def probability(self) -> float:
        """Probability of `label`."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Explanation:
    """What each token added to a logit.

    Attributes:
        tokens: the tokens read.
        unknown: whether each is outside the vocabulary.
        contributions: what each added, same length.
        logit: of the text.
        baseline: logit of the same text with every word vector zero and no n-gram.
        towards: name of the class that positive contributions favour.
        against: name of the class that negative ones favour; None with more than two classes.
    """

    tokens: list[str]
    unknown: list[bool]
    contributions: list[float]
    logit: float
    baseline: float
    towards: str
    against: str | None

    @property
    def gap(self) -> float:
        """How far the contributions' sum is from the whole difference, `logit - baseline`."""
        return sum(self.contributions) - (self.logit - self.baseline)


def class_names(run: "runs.Run") -> list[str]:
    """Names of the classes of a sentiment run, in order."""
    return [str(name) for name in run.task.class_names]


def check_several(texts: object, method: str = "predict") -> None:
    """Refuse what would be read letter by letter, or name of a column by name, where several texts are wanted.

    Args:
        texts: as given.
        method: that they were given to.

    Raises:
        TypeError: one text, a table, or a mapping.
    """
    if isinstance(texts, str):
        raise TypeError(f"{method} takes several texts: give [text]")
    if is_table(texts) or isinstance(texts, Mapping):
        kind = type(texts).__name__
        raise TypeError(f'{method} takes several texts, not a {kind}: give one column, as frame["text"]')


def classify(run: "runs.Run", texts: Sequence[str], before: int = 0) -> list[Prediction]:
    """Label texts with a sentiment run.

    Args:
        run: an open sentiment run.
        texts: each with at least one token.
        before: texts that were given before these, for the number of a text in a message.

    Returns:
        One prediction a text, in the order given; none depends on the other texts.

    Raises:
        UserError: a text without tokens, or something else in the place of a text.
    """
    if not texts:
        return []
    arrays = _encoded(run, texts, before)
    cut = _cut(arrays, run)
    scores, unknown = read(run, cut)
    names = class_names(run)
    rows = zip(texts, arrays, scores.argmax(1), scores.tolist(), cut.lengths.tolist(), unknown.tolist(), strict=True)
    return [
        Prediction(text, names[best], int(best), dict(zip(names, row, strict=True)), len(array), length, number)
        for text, array, best, row, length, number in rows
    ]


def _encoded(run: "runs.Run", texts: Sequence[str], before: int = 0) -> list[NDArray[np.int32]]:
    """Token ids of each text; arguments and errors as in `classify`."""
    other = next((number for number, text in enumerate(texts) if not isinstance(text, str)), None)
    if other is not None:  # such as the NaN that pandas has in the place of an empty cell
        raise UserError(f"text {before + other + 1}", texts[other], "must be a text", "leave it out, or give str(...)")
    arrays = run.tokenizer.encode_batch(list(texts))
    empty = next((number for number, array in enumerate(arrays) if not len(array)), None)
    if empty is not None:
        raise UserError(f"text {before + empty + 1}", texts[empty][:40], "must have at least one token")
    return arrays


def classify_stream(run: "runs.Run", texts: Iterable[str]) -> Iterator[Prediction]:
    """Label a stream of texts, `SORTED_TOGETHER` at a time; arguments and errors as in `classify`."""
    stream = iter(texts)
    before = 0
    while some := list(islice(stream, SORTED_TOGETHER)):
        yield from classify(run, some, before)
        before += len(some)


def _cut(arrays: Sequence[NDArray[np.int32]], run: "runs.Run") -> Texts:
    """The texts' token arrays, cut as the run's data cuts them."""
    settings = run.config["data"]
    return as_texts(arrays, settings.get("max_length"), settings.get("keep", "head"))


def places_read(run: "runs.Run", length: int) -> NDArray[np.int32]:
    """Places of the tokens that a classifier reads of a text of so many, which its data's settings may cut."""
    return _cut([np.arange(length, dtype=np.int32)], run)[0]


def features(run: "runs.Run", texts: Sequence[str]) -> NDArray[np.float32]:
    """What a classifier's head reads of each text: the pooled states of its recurrent layers.

    Args:
        run: an open sentiment run.
        texts: one or more, each with at least one token.

    Returns:
        `(texts, width)`; with `pooling=concat` last state, maximum and mean beside each other. Scores of n-grams are no
        part of it.

    Raises:
        UserError: as in `classify`, and for a net of one's own without a method `features`.
    """
    net = run.task.net
    if not callable(getattr(net, "features", None)):
        remedy = "give it features(text), as recur.nn.classifier.Classifier has it"
        raise UserError("net", type(net).__name__, "cannot say what its head reads", remedy)
    return vectors(_cut(_encoded(run, texts), run), net.features, run.task.device)


@torch.inference_mode()
def read(run: "runs.Run", texts: Texts) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read texts in batches of about `BATCH_TOKENS` tokens.

    Args:
        run: an open sentiment run.
        texts: their token ids, cut as they are to be read.

    Returns:
        probability of each class of each text, `(texts, classes)`, and unknown tokens of each text, `(texts,)`.
    """
    scores = np.empty((len(texts.lengths), run.task.num_classes))
    unknown = np.zeros(len(scores), dtype=np.int64)
    for packed, rows in batches(texts):
        logits = run.task.net(packed.to(run.task.device))  # (texts, classes), or (texts, 1) with two classes
        scores[rows] = run.task.probabilities(logits.double()).cpu().numpy()
        # A packed row's text is its place in its step.
        places = np.flatnonzero(packed.data.numpy() == run.tokenizer.unk_id)
        ends = np.cumsum(packed.batch_sizes.numpy())
        steps = np.searchsorted(ends, places, side="right")
        unknown[rows] = np.bincount(places - (ends - packed.batch_sizes.numpy())[steps], minlength=len(rows))
    return scores, unknown


def integrated_gradients(net: nn.Module, text: PackedSequence, target: int) -> tuple[Tensor, float, float]:
    """Contribution of each token of one text to a logit (Sundararajan, Taly & Yan 2017).

    The gradient with respect to the word vectors, averaged along the straight path from zero vectors to the text's
    own, times these vectors, summed over each vector. The contributions add up to the difference of the logits: so
    they do on every piece of the path, and the piece on which they are farthest from it is halved until the sum is
    within `TOLERANCE`. Those are the places where a pooled maximum passes from one step to another and, in long texts,
    where the state changes almost at a point: cliffs that no float can resolve. What is left of a cliff is divided
    among the tokens as the gradient at its edge divides it.

    Args:
        net: a classifier with `embed` and `classify`, in evaluation mode, best in float64: cliffs can be that narrow.
        text: one packed text.
        target: which logit.

    Returns:
        The contributions `(tokens,)`, the logit, and the logit at the baseline.
    """
    from captum.attr import IntegratedGradients  # takes a second to import, and predictions do without

    path = _Path(net, text, target, IntegratedGradients)
    baseline, logit = path.height(0.0), path.height(1.0)
    allowed = TOLERANCE * max(1.0, abs(logit - baseline))
    pieces = [path.piece(0.0, baseline, 1.0, logit)]
    while sum(piece.error for piece in pieces) > allowed and len(pieces) < PATH_PIECES:
        worst = pieces.pop(max(range(len(pieces)), key=lambda index: pieces[index].error))
        middle = (worst.start + worst.end) / 2
        level = path.height(middle)
        pieces += [path.piece(worst.start, worst.low, middle, level), path.piece(middle, level, worst.end, worst.high)]
    return torch.stack([piece.values for piece in pieces]).sum(0), logit, baseline


@dataclass(frozen=True)
class _Piece:
    """A part of the path: where it runs, the logits at its ends, each token's share of their difference."""

    start: float
    low: float
    end: float
    high: float
    values: Tensor  # (tokens,)
    error: float  # of the shares' sum


class _Path:
    """The straight path from zero word vectors to a text's own."""

    def __init__(self, net: nn.Module, text: PackedSequence, target: int, method: "type[IntegratedGradients]") -> None:
        self._net, self._target, self._tokens = net, target, len(text.data)
        self._vectors: Tensor = net.embed(text).detach()  # type: ignore[operator]  # (tokens, embedding_dim)
        self._method = method(self._logits)

    def _logits(self, points: Tensor) -> Tensor:  # (points, tokens, embedding_dim) -> (points, classes)
        layout = PackedSequence(points[:, :, 0].T.flatten(), torch.full((self._tokens,), len(points)))
        logits: Tensor = self._net.classify(points.transpose(0, 1).flatten(0, 1), layout)  # type: ignore[operator]
        return logits

    @torch.no_grad()
    def height(self, place: float) -> float:
        """The logit at a place between 0 and 1 on the path."""
        return float(self._logits(place * self._vectors[None])[0, self._target].double())

    def piece(self, start: float, low: float, end: float, high: float) -> _Piece:
        """Contributions along the path from `start` to `end`, whose logits are `low` and `high`."""
        (attributed,) = self._method.attribute(
            end * self._vectors[None],
            baselines=start * self._vectors[None],
            target=self._target,
            n_steps=PATH_POINTS,
            internal_batch_size=max(1, BATCH_TOKENS // self._tokens),
        )
        values = attributed.double().sum(1)  # (tokens, embedding_dim) -> (tokens,)
        total = float(values.sum())
        if end - start < CLIFF and total:
            values, total = values * ((high - low) / total), high - low
        return _Piece(start, low, end, high, values, abs(total - (high - low)))


class Explainer:
    """Explains texts with a copy of a run's network in float64 on the CPU, made once; the run stays where it is.

    A copy, because cuDNN has no gradients in evaluation mode.

    Args:
        run: an open sentiment run.

    Raises:
        UserError: its network does not tell word vectors from what is made of them.
    """

    def __init__(self, run: "runs.Run") -> None:
        if not all(callable(getattr(run.task.net, name, None)) for name in ("embed", "classify")):
            name = type(run.task.net).__name__
            remedy = "give it embed(text) and classify(vectors, text), as recur.nn.classifier.Classifier has them"
            raise UserError(
                str(run.checkpoint),
                rule=f"cannot be explained: its network {name} has no embed and classify",
                remedy=remedy,
            )
        self._run = run
        self._net = copy.deepcopy(run.task.net).cpu().double()

    def explain(self, text: str, index: int) -> Explanation:
        """What each token of a text contributed.

        With two classes to the one logit, the log-odds of the second class; with more to the logit of class `index`.

        Raises:
            UserError: no token, or more than `EXPLAIN_TOKENS`.
        """
        run, tokenizer = self._run, self._run.tokenizer
        ids = tokenizer.encode_batch([text])[0]
        cut = _cut([ids], run)
        length = int(cut.lengths[0])
        if not 0 < length <= EXPLAIN_TOKENS:
            rule = f"must have 1 to {EXPLAIN_TOKENS:,} tokens to be explained, got {length:,}"
            raise UserError("a text", ABSENT, rule, "shorten it" if length else "give at least one word")
        kept = places_read(run, len(ids))
        pieces = tokenizer.tokens(text)
        assert len(pieces) == len(ids)
        packed, _ = cut.pack(np.array([0]))
        names = class_names(run)
        binary = len(names) == 2
        target = 0 if binary else index
        values, logit, baseline = integrated_gradients(self._net, packed, target)
        if isinstance(self._net, Classifier) and self._net.ngrams is not None:  # a sum already: nothing to integrate
            ngrams = self._net.ngrams
            scores, always = ngrams.contributions(packed)[:, target].cpu(), float(ngrams.offset[target])
            values = (1 - ngrams.share) * values + ngrams.share * scores
            logit = (1 - ngrams.share) * logit + ngrams.share * (float(scores.sum()) + always)
            baseline = (1 - ngrams.share) * baseline + ngrams.share * always
        return Explanation(
            tokens=[pieces[place] for place in kept.tolist()],
            unknown=[number == tokenizer.unk_id for number in cut[0].tolist()],
            contributions=values.tolist(),
            logit=logit,
            baseline=baseline,
            towards=names[1 if binary else index],
            against=names[0] if binary else None,
        )
