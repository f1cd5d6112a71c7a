"""What a model without a network reaches on the same rows, to show what a network gains.

A classifier stands beside a linear model on TF-IDF weighted words and pairs of words, a language model beside an
interpolated Kneser-Ney 5-gram. Both read the tokens that the network reads: the same vocabulary, the same cuts.
"""

import math
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recur.data.cache import TokenCache
from recur.data.families import LabelledTexts, TokenStream
from recur.errors import UserError
from recur.runs.extras import lacks
from recur.runs.fingerprint import fingerprint

Ids = NDArray[np.int64]


class Rows(Protocol):
    """Token ids of texts: `recur.data.buckets.Texts`, a list of arrays, ..."""

    def __len__(self) -> int:
        """Number of texts."""

    def __getitem__(self, row: int, /) -> NDArray[Any]:
        """Ids of one text, `(tokens,)`."""


# ---------------------------------------------------------------------------------------------------- a linear model


class LinearNgrams:
    """Logistic regression on the TF-IDF of words and pairs of words; scikit-learn does the work.

    The weight of an n-gram in a text is (1 + ln count) times ln((1 + texts) / (1 + texts that hold it)) + 1; rows have
    length 1 (Salton & Buckley 1988).

    Args:
        texts: token ids to learn from.
        labels: class of each text, `(texts,)`.
        vocab_size: of the tokens.
        strength: inverse of the L2 penalty. 30 is best on IMDB's validation rows.
        rare: an n-gram that stands in fewer texts is left out.

    Raises:
        UserError: scikit-learn is missing.
    """

    def __init__(
        self, texts: Rows, labels: NDArray[Any], vocab_size: int, *, strength: float = 30.0, rare: int = 2
    ) -> None:
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise lacks("baseline", "scikit-learn", "baseline=true", "set baseline=false") from None
        self._vocab_size = vocab_size
        rows, keys = _ngrams(texts, vocab_size)
        pairs, counts = np.unique(np.stack([keys, rows]), axis=1, return_counts=True) if len(keys) else (None, None)
        if pairs is None or counts is None:
            raise UserError("baseline", rule="has no token to learn from", remedy="set baseline=false")
        known, texts_with = np.unique(pairs[0], return_counts=True)
        kept = texts_with >= min(rare, len(texts))
        self._keys = known[kept] if kept.any() else known
        held = texts_with[kept] if kept.any() else texts_with
        self._idf = np.log((1 + len(texts)) / (1 + held)) + 1
        self._model = LogisticRegression(C=strength, max_iter=200)
        self._model.fit(self._weights(pairs[0], pairs[1], counts, len(texts)), labels)

    def _weights(self, keys: Ids, rows: Ids, counts: Ids, size: int) -> Any:
        """Sparse `(size, features)` matrix of the weights of these (n-gram, text, count) triples."""
        from scipy.sparse import csr_array

        columns = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        seen = self._keys[columns] == keys
        rows, columns = rows[seen], columns[seen]
        values = (1 + np.log(counts[seen])) * self._idf[columns]
        squares = np.bincount(rows, values**2, minlength=size)
        values /= np.sqrt(squares)[rows]
        return csr_array((values, (rows, columns)), shape=(size, len(self._keys)))

    def predict(self, texts: Rows) -> NDArray[Any]:
        """The most probable class of each text, `(texts,)`."""
        rows, keys = _ngrams(texts, self._vocab_size)
        if not len(keys):
            return self._model.predict(self._weights(keys, rows, keys, len(texts)))
        pairs, counts = np.unique(np.stack([keys, rows]), axis=1, return_counts=True)
        return self._model.predict(self._weights(pairs[0], pairs[1], counts, len(texts)))

    def accuracy(self, texts: Rows, labels: NDArray[Any]) -> float:
        """Share of the texts whose class is right."""
        return float(np.mean(self.predict(texts) == labels))


def _ngrams(texts: Rows, vocab_size: int) -> tuple[Ids, Ids]:
    """Text number and key of every word and every pair of words: a word is its id, a pair `V + first * V + second`."""
    lengths = np.array([len(texts[row]) for row in range(len(texts))], dtype=np.int64)
    if not lengths.sum():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ids = np.concatenate([np.asarray(texts[row], dtype=np.int64) for row in range(len(texts))])
    rows = np.repeat(np.arange(len(texts)), lengths)
    inside = rows[1:] == rows[:-1]  # a pair does not reach over two texts
    pairs = vocab_size + ids[:-1][inside] * vocab_size + ids[1:][inside]
    return np.concatenate([rows, rows[1:][inside]]), np.concatenate([ids, pairs])


# ------------------------------------------------------------------------------------------------------ a 5-gram


class KneserNey:
    """Interpolated n-gram model with modified Kneser-Ney smoothing (Chen & Goodman 1999).

    The highest order counts occurrences, the lower orders count the different words before an n-gram; each order's
    discount depends on whether the count is 1, 2 or more; below the unigrams stands the uniform distribution.

    Args:
        tokens: the training text, `(tokens,)`.
        vocab_size: of the tokens.
        start_id: token that stands before a text.
        order: longest n-gram, at least 2.
    """

    def __init__(self, tokens: NDArray[Any], vocab_size: int, start_id: int, order: int = 5) -> None:
        self._vocab_size, self._start = vocab_size, start_id
        text = self._with_start(tokens)
        last = text.copy()  # number of the n-gram that ends at each place, -1 where none does
        last_size = vocab_size
        keys: list[Ids] = []
        counts: list[NDArray[np.float64]] = []
        for n in range(2, order + 1):
            key = last[:-1] * vocab_size + text[1:]
            valid = last[:-1] >= 0
            kept_keys, first, number = np.unique(key[valid], return_index=True, return_inverse=True)
            ends = np.flatnonzero(valid) + 1
            # Each different n-gram adds one word before the (n-1)-gram that it ends with.
            counts.append(np.bincount(last[ends[first]], minlength=last_size).astype(np.float64))
            raw = np.bincount(number, minlength=len(kept_keys)).astype(np.float64)
            keys.append(kept_keys)
            following = np.full(len(text), -1, dtype=np.int64)
            following[ends] = number
            last, last_size = following, len(kept_keys)
            if n == order:
                counts.append(raw)
        self._unigram = counts[0]
        self._orders = [
            _Order(key, count, vocab_size, contexts)
            for key, count, contexts in zip(
                keys, counts[1:], [vocab_size, *(len(key) for key in keys[:-1])], strict=True
            )
        ]

    def _with_start(self, tokens: NDArray[Any]) -> Ids:
        return np.concatenate([[self._start], np.asarray(tokens, dtype=np.int64)])

    def nll(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Negative log-likelihood of each token given all before it, in nats, `(tokens,)`."""
        text = self._with_start(tokens)
        words = text[1:]
        discount = _discounts(self._unigram)
        total = self._unigram.sum()
        left = (discount[np.minimum(self._unigram, 3).astype(np.int64)]).sum() / total
        chance = (self._unigram - discount[np.minimum(self._unigram, 3).astype(np.int64)])[words] / total
        chance = chance + left / self._vocab_size
        last = text
        for table in self._orders:
            chance, last = table.refine(chance, last, words)
        return -np.log(chance)

    def perplexity(self, tokens: NDArray[Any]) -> float:
        """Exponential of the mean negative log-likelihood of a token."""
        return math.exp(float(self.nll(tokens).mean()))


class _Order:
    """Counts of the n-grams of one order.

    Args:
        keys: sorted, `context * vocab_size + word`, where a context is the number of an (n-1)-gram.
        counts: of each n-gram.
        vocab_size: of the words.
        contexts: how many (n-1)-grams there are.
    """

    def __init__(self, keys: Ids, counts: NDArray[np.float64], vocab_size: int, contexts: int) -> None:
        self._keys, self._vocab_size = keys, vocab_size
        discounts = _discounts(counts)[np.minimum(counts, 3).astype(np.int64)]
        context = keys // vocab_size
        self._kept = counts - discounts
        self._totals = np.bincount(context, counts, minlength=contexts)
        self._left = np.bincount(context, discounts, minlength=contexts)

    def refine(self, chance: NDArray[np.float64], last: Ids, words: Ids) -> tuple[NDArray[np.float64], Ids]:
        """Interpolate the lower order's probabilities with this order's.

        Args:
            chance: of each word by the lower order, `(tokens,)`.
            last: number of the (n-1)-gram that ends at each place, the start included, `(tokens + 1,)`; -1 for none.
            words: `(tokens,)`.

        Returns:
            The probabilities, and the numbers of the n-grams that end at each place.
        """
        context = last[:-1]
        key = context * self._vocab_size + words
        place = np.searchsorted(self._keys, key).clip(max=max(0, len(self._keys) - 1))
        seen = (context >= 0) & (self._keys[place] == key) if len(self._keys) else np.zeros(len(words), dtype=bool)
        known = context >= 0
        known[known] = self._totals[context[known]] > 0  # an n-gram that only begins or ends the text counts nothing
        better = chance.copy()
        totals = self._totals[context[known]]
        better[known] = (
            np.where(seen, self._kept[place] if len(self._kept) else 0.0, 0.0)[known]
            + self._left[context[known]] * chance[known]
        ) / totals
        ends = np.full(len(last), -1, dtype=np.int64)
        ends[1:][seen] = place[seen]
        return better, ends


def _discounts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is taken off a count of 0, 1, 2 and 3 or more; .5, 1 and 1.5 where there are too few counts to estimate."""
    one, two, three, four = (float(np.count_nonzero(counts == n)) for n in (1, 2, 3, 4))
    if not (one and two and three):
        return np.array([0.0, 0.5, 1.0, 1.5])
    y = one / (one + 2 * two)
    estimates = [1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three]
    return np.array([0.0, *(min(max(value, 0.1), n) for n, value in enumerate(estimates, start=1))])


# ---------------------------------------------------------------------------------------------------- beside a run

Baseline = dict[str, Any]
MOST_TOKENS, _BYTES = 20_000_000, 230  # of all training texts, and of memory for each of them
_VERSION = 1  # of what is computed: part of the key under which results are kept
_CHARACTERS, _WORDS = 8, 5  # order of the n-gram model


def left_out(data: Any) -> str:
    """Why there can be no baseline for this data here, in words for the user; empty where there can.

    Asked before a run, which would otherwise find out when it has been trained.
    """
    if isinstance(data, LabelledTexts) and find_spec("sklearn") is None:
        return str(lacks("baseline", "scikit-learn", "baseline=true"))
    count = 0
    if isinstance(data, LabelledTexts):
        count = int(data.texts("train").lengths.sum())
    elif isinstance(data, TokenStream):
        count = len(data.tokens("train"))
    if count > MOST_TOKENS:
        return f"the n-grams of {count:,} tokens would take {count * _BYTES / 1e9:,.0f} GB of memory"
    return ""


def baseline(data: Any, splits: Iterable[str], cache_dir: str | None = None) -> Baseline:
    """What the family's model without a network reaches; computed once for the same data, then read from the cache.

    Args:
        data: a `SentimentData` or `LanguageData`, set up.
        splits: to score, of `val` and `test`.
        cache_dir: where tokens are cached, see `recur.data.cache.cache_folder`.

    Returns:
        `name` and, by split, `accuracy` or `loss` (nats a token) and `perplexity`; empty where there is no such model:
        for data of another kind, a single class, windows without carried state.

    Raises:
        UserError: scikit-learn is missing.
    """
    names = [split for split in splits if split in data.splits]
    compute = _of_texts if isinstance(data, LabelledTexts) else _of_a_stream if isinstance(data, TokenStream) else None
    if compute is None or not names or getattr(data, "window", None) is not None:
        return {}
    key = {"baseline": _VERSION, "splits": names, "data": fingerprint(data)}
    return dict(TokenCache(cache_dir).fact(key, lambda: compute(data, names)))


def _of_texts(data: Any, splits: list[str]) -> Baseline:
    labels = data.labels("train")
    if len(np.unique(labels)) < 2:
        return {}
    model = LinearNgrams(data.texts("train"), labels, data.vocab_size)
    scores = {split: {"accuracy": model.accuracy(data.texts(split), data.labels(split))} for split in splits}
    return {"name": "linear n-grams", **scores}


def _of_a_stream(data: Any, splits: list[str]) -> Baseline:
    order = _CHARACTERS if data.tokenizer.kind == "character" else _WORDS
    model = KneserNey(data.tokens("train"), data.vocab_size, data.start_id, order)
    losses = {split: float(model.nll(data.tokens(split)).mean()) for split in splits}
    scores = {split: {"loss": loss, "perplexity": math.exp(loss)} for split, loss in losses.items()}
    return {"name": f"Kneser-Ney {order}-grams", **scores}
