"""Scores of n-grams: a linear classifier whose logits are averaged with the recurrent one's.

What Wang & Manning (2012) call NB-SVM: the presence of each n-gram in a text is scaled with the logarithm of how much
more often it stands in texts of a class than of the others, and a logistic regression on these features is fitted. That
is done before the network is trained, which then is trained alone: added to its logits in training, as the wide part of
Cheng et al. (2016), the scores would leave it little to learn.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.nn.arguments import ArgumentError
from recur.nn.packed import Layout

_MULTIPLIER = 0x5851F42D4C957F2D  # of Knuth's MMIX generator: odd, and its bits are well spread
_SHIFT = 33
_BITS = 46  # of an n-gram's number: two of ten million have the same with a chance of one in a million
_FEW, _MANY_TOKENS = 2, 1_000_000  # triples gain from 5,000 reviews on, and lose with 1,000
_STEPS = 30  # of L-BFGS: no more are worth their time


class NgramScores(nn.Module):
    """Adds up, for each class, the scores of the different n-grams of a text.

    With `x_f` 1 where a text holds n-gram f, the score of class k is

        b_k + sum_f x_f v_fk,    v_fk = w_fk ln(p_fk / q_fk)

    where `p_fk = (c_fk + smoothing) / (n_k + smoothing)`, `c_fk` is the number of training texts of class k that hold
    f, `n_k` the number of n-grams of all texts of class k, and `q_fk` the same of all other classes. `w` and `b`
    minimise `strength * (sum of the texts' cross-entropies) + |w|^2 / 2`; a text may weigh what its class does.

    Args:
        num_classes: at least 2.
        max_n: longest n-gram, in tokens; None for 2 where the training texts have fewer than a million tokens, else 3.
        share: of the scores in the average with the network's logits.
        smoothing: added to every count.
        strength: inverse of the L2 penalty.
        rare: an n-gram that stands in fewer texts scores nothing.

    Attributes:
        known: numbers of the n-grams that score, ascending, `(n-grams,)` int64; none before `fit`.
        table: `v`, `(n-grams, outputs)`; outputs is 1 for two classes, the score of class 1, else their number.
        offset: `b`, `(outputs,)`.
        longest: what `max_n` came to, a number of int64.

    Raises:
        ArgumentError: a number out of its range.
    """

    known: Tensor
    table: Tensor
    offset: Tensor
    longest: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        max_n: int | None = None,
        share: float = 0.5,
        smoothing: float = 1.0,
        strength: float = 0.3,
        rare: int = 2,
    ) -> None:
        super().__init__()
        if max_n is not None and not 1 <= max_n <= 8:
            raise ArgumentError("ngrams.max_n", f"must lie in [1, 8], got {max_n}")
        for name, value in (("smoothing", smoothing), ("strength", strength)):
            if not 0 < value < math.inf:
                raise ArgumentError(f"ngrams.{name}", f"must be above 0, got {value}")
        if not 0 < share < 1:
            raise ArgumentError("ngrams.share", f"must lie between 0 and 1, got {share}")
        if rare < 1:
            raise ArgumentError("ngrams.rare", f"must be at least 1, got {rare}")
        self.num_classes, self.max_n, self.smoothing = num_classes, max_n, smoothing
        self.share, self.strength, self.rare = share, strength, rare
        outputs = 1 if num_classes == 2 else num_classes
        self.register_buffer("known", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("table", torch.zeros(0, outputs))
        self.register_buffer("offset", torch.zeros(outputs))
        self.register_buffer("longest", torch.tensor(max_n or _FEW))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Follow a module to its device, but stay in float32: a text's score is a sum of hundreds."""

        def kept(value: Tensor) -> Tensor:
            moved = fn(value)
            return moved if moved.dtype == value.dtype else value.to(moved.device)

        return super()._apply(kept, recurse)

    def make_room_for(self, state: Mapping[str, Any], prefix: str) -> None:
        """Take on the size of what a checkpoint has, `state` with names that begin with `prefix`."""
        known = state.get(f"{prefix}known")
        if isinstance(known, Tensor) and known.dim() == 1:
            self._make_room(len(known))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.make_room_for(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make_room(self, size: int) -> None:
        self.known = self.known.new_zeros(size)
        self.table = self.table.new_zeros(size, self.table.shape[1])

    def features(self, text: PackedSequence) -> tuple[Tensor, Tensor]:
        """The different n-grams of each text.

        Args:
            text: packed ids, longest text first.

        Returns:
            Which text, in the packed order, and the n-gram's number, each `(features,)` int64, sorted.
        """
        places, keys, _ = self._ngrams(text)
        pairs = torch.unique((places << _BITS) + keys)
        return pairs >> _BITS, pairs & (2**_BITS - 1)

    def _known_features(self, text: PackedSequence) -> tuple[Tensor, Tensor]:
        """The different n-grams of each text that score: which text, and which place in `known`."""
        places, keys, _ = self._ngrams(text)
        at = self._at(keys)
        scored = at >= 0
        pairs = torch.unique(places[scored] * max(1, len(self.known)) + at[scored])
        return pairs // max(1, len(self.known)), pairs % max(1, len(self.known))

    def _at(self, keys: Tensor) -> Tensor:
        """Where `known` has these numbers; -1 for what it has not."""
        if not len(self.known):
            return torch.full_like(keys, -1)
        at = torch.searchsorted(self.known, keys).clamp_(max=len(self.known) - 1)
        return torch.where(self.known[at] == keys, at, -1)

    def _ngrams(self, text: PackedSequence) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Text and number of every n-gram, `(n-grams,)`, and for each n the rows at which an n-gram ends."""
        layout = Layout(text.batch_sizes)
        device = text.data.device
        place, before = layout.places.to(device), layout.previous_rows(False).to(device)
        step = torch.repeat_interleave(torch.arange(len(layout.sizes)), layout.batch_sizes, output_size=layout.rows)
        step = step.to(device)
        ids = text.data + 1
        hashed, rows = torch.zeros_like(ids), torch.arange(layout.rows, device=device)
        places, keys, ends = [], [], []
        for n in range(1, int(self.longest) + 1):
            # an n-gram that ends at a row is the (n-1)-gram that ends at the row before it, and the row's own token
            longer = hashed[before[rows]] if n > 1 else hashed[rows]
            mixed = (longer ^ (longer >> _SHIFT)) * _MULTIPLIER + ids[rows]  # wraps around, as hashes do
            hashed = torch.zeros_like(ids).index_copy_(0, rows, mixed * _MULTIPLIER)
            places.append(place[rows])
            keys.append((hashed[rows] >> (63 - _BITS)) & (2**_BITS - 1))
            ends.append(rows)
            rows = rows[step[rows] >= n]
        return torch.cat(places), torch.cat(keys), ends

    @torch.no_grad()
    def fit(
        self,
        batches: Iterable[tuple[PackedSequence, Tensor]],
        tokens: int = 0,
        class_weights: Tensor | None = None,
    ) -> None:
        """Fit the scores, on a CPU.

        Args:
            batches: packed ids and the class of each text, `(batch,)` in the packed order. All of their n-grams are
                kept in memory, some 40 bytes each.
            tokens: of all training texts, from which `max_n` is chosen where it is None.
            class_weights: of a text's cross-entropy, `(num_classes,)`; what counts is their ratio, since they are
                scaled to a mean over the texts of 1.
        """
        self.longest.fill_(self.max_n or (_FEW if tokens < _MANY_TOKENS else _FEW + 1))
        sizes, keys, labels = [], [], []
        for text, classes in batches:
            place, key = self.features(text)
            sizes.append(torch.bincount(place, minlength=len(classes)).cpu())
            keys.append(key.cpu())
            labels.append(classes.cpu())
        self._make_room(0)
        self.offset.zero_()
        if not keys:
            return
        known, held = _Held.of(torch.cat(sizes), torch.cat(keys), torch.cat(labels), self.rare)
        self._make_room(len(known))
        values, offset = self._solve(held, class_weights)
        for own, value in ((self.known, known), (self.table, values), (self.offset, offset)):
            own.copy_(value)

    def _solve(self, held: "_Held", class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores of the n-grams and of every text, `(n-grams, outputs)` and `(outputs,)`."""
        classes = F.one_hot(held.labels, self.num_classes).float()  # (texts, classes)
        counts = held.by_ngram(classes)  # (n-grams, classes)
        others = counts.sum(1, keepdim=True) - counts
        shares = [(c + self.smoothing).log() - (c.sum(0) + self.smoothing).log() for c in (counts, others)]
        two = self.num_classes == 2
        ratios, targets = shares[0] - shares[1], classes
        if two:
            ratios, targets = ratios[:, 1:], classes[:, 1:]
        weights, offset = torch.zeros_like(ratios), torch.zeros(ratios.shape[1])
        size = len(classes)
        each = torch.ones(size) if class_weights is None else class_weights.float().cpu()[held.labels]
        each = each / each.mean().clamp(min=1e-30)  # (texts,)
        penalty = 1 / (self.strength * size)  # of the mean over texts, so that tolerances are a text's
        solver = torch.optim.LBFGS(
            [weights, offset], max_iter=_STEPS, tolerance_change=1e-7, history_size=10, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            scores = held.by_text(weights * ratios) + offset  # (texts, outputs)
            if two:
                mean = F.binary_cross_entropy_with_logits(scores, targets, each[:, None])
                error = (scores.sigmoid() - targets) * each[:, None] / size
            else:
                mean = (each * F.cross_entropy(scores, held.labels, reduction="none")).mean()
                error = (scores.softmax(1) - targets) * each[:, None] / size
            weights.grad = held.by_ngram(error) * ratios + penalty * weights
            offset.grad = error.sum(0)
            return mean + penalty / 2 * weights.square().sum()

        solver.step(objective)
        return weights * ratios, offset

    def forward(self, text: PackedSequence) -> Tensor:
        """Scores of texts.

        Args:
            text: packed ids, longest text first.

        Returns:
            `(batch, 1)` for two classes (of class 1), else `(batch, num_classes)`, in the order the texts were given.
        """
        place, at = self._known_features(text)
        scores = self.offset.repeat(int(text.batch_sizes[0]), 1).index_add_(0, place, self.table[at])
        return scores if text.unsorted_indices is None else scores[text.unsorted_indices]

    def average(self, logits: Tensor, text: PackedSequence) -> Tensor:
        """Average of a network's logits and these scores, where there are any, both in the order of the texts."""
        return (1 - self.share) * logits + self.share * self(text) if len(self.known) else logits

    @torch.no_grad()
    def contributions(self, text: PackedSequence) -> Tensor:
        """What each token adds to the scores of one text, `(tokens, 1 or num_classes)`.

        What an n-gram adds is divided equally among the places at which it stands, and there among its tokens. The sum
        over the tokens is what `forward` gives, without `offset`.
        """
        _, keys, ends = self._ngrams(text)
        different, number, count = torch.unique(keys, return_inverse=True, return_counts=True)
        at = self._at(different)
        values = torch.cat([self.table, self.table.new_zeros(1, self.table.shape[1])])[at] / count[:, None]  # -1: none
        result = values.new_zeros(len(text.data), values.shape[1])
        first = 0
        for n, rows in enumerate(ends, start=1):
            own = values[number[first : first + len(rows)]] / n
            for back in range(n):
                result.index_add_(0, rows - back, own)
            first += len(rows)
        return result


class _Held(NamedTuple):
    """Which texts hold which n-grams, both ways round, and the texts' classes.

    Attributes:
        columns: n-grams of each text, one text after the other, `(features,)` int32.
        starts: where each text's begin, `(texts,)` int32.
        rows: texts of each n-gram, likewise, `(features,)`.
        begins: where each n-gram's begin, `(n-grams,)`.
        labels: `(texts,)` int64.
    """

    columns: Tensor
    starts: Tensor
    rows: Tensor
    begins: Tensor
    labels: Tensor

    @classmethod
    def of(cls, sizes: Tensor, keys: Tensor, labels: Tensor, rare: int) -> tuple[Tensor, "_Held"]:
        """From the number of n-grams of each text and their numbers, one text after the other.

        Returns:
            The numbers of the n-grams that stand in enough texts, and these.
        """
        known, number, counts = torch.unique(keys, return_inverse=True, return_counts=True)
        kept = counts >= min(rare, int(counts.max()) if len(counts) else 1)
        rows = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), sizes)
        inside = kept[number]
        columns, rows = (kept.cumsum(0).int() - 1)[number[inside]], rows[inside]
        starts = torch.bincount(rows, minlength=len(sizes)).cumsum(0).roll(1)
        order = columns.argsort(stable=True)
        begins = counts[kept].cumsum(0).roll(1)
        starts[:1], begins[:1] = 0, 0
        return known[kept], cls(columns, starts.int(), rows[order], begins.int(), labels)

    def by_text(self, values: Tensor) -> Tensor:
        """Sum of the values of each text's n-grams: `(n-grams, k)` to `(texts, k)`."""
        return F.embedding_bag(self.columns, values, self.starts, mode="sum")

    def by_ngram(self, values: Tensor) -> Tensor:
        """Sum of the values of the texts that hold each n-gram: `(texts, k)` to `(n-grams, k)`."""
        return F.embedding_bag(self.rows, values, self.begins, mode="sum")
