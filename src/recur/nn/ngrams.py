"""Scores of hashed n-grams: a linear classifier beside the recurrent one, which starts as naive Bayes.

What Wang & Manning (2012) call NB-SVM: the presence of each n-gram in a text is scaled with the logarithm of how much
more often it stands in texts of one class than of the others, and a linear model on these features is trained. Here it
is trained together with the network, whose logits its scores are added to (as in the wide part of Cheng et al. 2016).

While training, a text's own n-grams are taken off the counts (leave one out). Otherwise nearly every training text
would be known by the n-grams that it alone has, and the network would be left with nothing to learn.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.nn.arguments import ArgumentError
from recur.nn.packed import Layout

_MULTIPLIER = 0x5851F42D4C957F2D  # of Knuth's MMIX generator: odd, and its bits are well spread
_MOST_BUCKETS = 2**26
_SHIFT = 33


class NgramScores(nn.Module):
    """Adds up, for each class, the scores of the different n-grams of a text.

    The score of n-gram f for class k is `scale (prior + w_f) (ln p_fk - mean over classes of ln p_f)`, where
    `p_fk = (c_fk + smoothing) / (n_k + smoothing)`, `c_fk` is the number of training texts of class k that hold f and
    `n_k` the number of n-grams of all texts of class k; `w` is learnt and starts at 0. N-grams are hashed: two that
    fall into one bucket count as one.

    Args:
        num_classes: at least 2.
        max_n: longest n-gram, in tokens.
        buckets: how many there are, a power of 2.
        smoothing: added to every count.
        prior: weight of naive Bayes before anything has been learnt.
        scale: of all scores, which keeps the learning rate of the rest of the network right for `w`.
        dropout: share of the n-grams that is left out, in training.

    Attributes:
        counts: training texts of each class that hold an n-gram of each bucket, `(buckets, num_classes)` int32.

    Raises:
        ArgumentError: a number out of its range.
    """

    counts: Tensor
    totals: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        max_n: int = 3,
        buckets: int = 2**20,
        smoothing: float = 1.0,
        prior: float = 0.4,
        scale: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= max_n <= 8:
            raise ArgumentError("ngrams.max_n", f"must lie in [1, 8], got {max_n}")
        if not 2 <= buckets <= _MOST_BUCKETS or buckets & (buckets - 1):
            raise ArgumentError("ngrams.buckets", f"must be a power of 2 of at most {_MOST_BUCKETS:,}, got {buckets}")
        for name, value in (("smoothing", smoothing), ("scale", scale)):
            if not 0 < value < math.inf:
                raise ArgumentError(f"ngrams.{name}", f"must be above 0, got {value}")
        if not 0 <= prior < math.inf:
            raise ArgumentError("ngrams.prior", f"must be at least 0, got {prior}")
        if not 0 <= dropout < 1:
            raise ArgumentError("ngrams.dropout", f"must lie in [0, 1), got {dropout}")
        self.num_classes, self.max_n, self.buckets = num_classes, max_n, buckets
        self.smoothing, self.prior, self.scale, self.dropout = smoothing, prior, scale, dropout
        self.weight = nn.Parameter(torch.zeros(buckets))
        self.register_buffer("counts", torch.zeros(buckets, num_classes, dtype=torch.int32))
        self.register_buffer("totals", torch.zeros(num_classes, dtype=torch.int64))

    def features(self, text: PackedSequence) -> tuple[Tensor, Tensor]:
        """The different n-grams of each text.

        Args:
            text: packed ids, longest text first.

        Returns:
            Which text, in the packed order, and which bucket, each `(features,)` int64, sorted.
        """
        places, keys, _ = self._ngrams(text)
        pairs = torch.unique(places * self.buckets + keys)
        return pairs // self.buckets, pairs % self.buckets

    def _ngrams(self, text: PackedSequence) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Text and bucket of every n-gram, `(n-grams,)`, and for each n the rows at which an n-gram ends."""
        layout = Layout(text.batch_sizes)
        device = text.data.device
        place, before = layout.places.to(device), layout.previous_rows(False).to(device)
        step = torch.repeat_interleave(torch.arange(len(layout.sizes)), layout.batch_sizes, output_size=layout.rows).to(
            device
        )
        ids = text.data + 1
        hashed, rows = torch.zeros_like(ids), torch.arange(layout.rows, device=device)
        places, keys, ends = [], [], []
        for n in range(1, self.max_n + 1):
            # an n-gram that ends at a row is the (n-1)-gram that ends at the row before it, and the row's own token
            longer = hashed[before[rows]] if n > 1 else hashed[rows]
            mixed = (longer ^ (longer >> _SHIFT)) * _MULTIPLIER + ids[rows]  # wraps around, as hashes do
            hashed = torch.zeros_like(ids).index_copy_(0, rows, mixed * _MULTIPLIER)
            places.append(place[rows])
            keys.append((hashed[rows] >> 24) & (self.buckets - 1))
            ends.append(rows)
            rows = rows[step[rows] >= n]
        return torch.cat(places), torch.cat(keys), ends

    @torch.no_grad()
    def count(self, batches: Iterable[tuple[PackedSequence, Tensor]]) -> None:
        """Count the n-grams of the training texts.

        Args:
            batches: packed ids and the class of each text, `(batch,)` in the packed order.
        """
        self.counts.zero_()
        flat = self.counts.view(-1)
        for text, labels in batches:
            place, key = self.features(text)
            cells = (key * self.num_classes + labels[place]).to(flat.device)
            flat += torch.bincount(cells, minlength=flat.numel()).to(torch.int32)
        self.totals.copy_(self.counts.sum(0, dtype=torch.int64))

    def _ratios(self, place: Tensor, key: Tensor, labels: Tensor | None) -> Tensor:
        """Centred logarithms of each class's share of an n-gram, `(features, num_classes)`."""
        counts, totals = self.counts[key].to(self.weight.dtype), self.totals.to(self.weight.dtype)
        if labels is None:
            shares = (counts + self.smoothing).log() - (totals + self.smoothing).log()
        else:
            own = nn.functional.one_hot(labels, self.num_classes)  # (batch, num_classes)
            sizes = torch.bincount(place, minlength=len(labels))
            others = totals - own * sizes[:, None]  # (batch, num_classes)
            left = (counts - own[place]).clamp_(min=0)  # a resumed run may see texts that were never counted
            shares = (left + self.smoothing).log() - (others.clamp_(min=0) + self.smoothing).log()[place]
        return shares - shares.mean(1, keepdim=True)

    def forward(self, text: PackedSequence, labels: Tensor | None = None) -> Tensor:
        """Scores to be added to a classifier's logits.

        Args:
            text: packed ids, longest text first.
            labels: class of each text, in the packed order, while training on texts that were counted.

        Returns:
            `(batch, 1)` for two classes (of class 1), else `(batch, num_classes)`, in the order the texts were given.
        """
        place, key = self.features(text)
        values = self._values(place, key, labels)
        scores = values.new_zeros(int(text.batch_sizes[0]), values.shape[1]).index_add_(0, place, values)
        return scores if text.unsorted_indices is None else scores[text.unsorted_indices]

    def _values(self, place: Tensor, key: Tensor, labels: Tensor | None) -> Tensor:
        """What each n-gram of each text adds, `(features, 1 or num_classes)`."""
        ratios = self._ratios(place, key, labels)
        weights = self.scale * (self.prior + self.weight[key])  # (features,)
        if self.num_classes == 2:
            ratios = ratios[:, 1:] - ratios[:, :1]
        return nn.functional.dropout(weights, self.dropout, self.training)[:, None] * ratios

    @torch.no_grad()
    def contributions(self, text: PackedSequence) -> Tensor:
        """What each token adds to the scores of one text, `(tokens, 1 or num_classes)`.

        What an n-gram adds is divided equally among the places at which it stands, and there among its tokens: the sum
        over the tokens is what `forward` gives.
        """
        _, keys, ends = self._ngrams(text)
        different, number, count = torch.unique(keys, return_inverse=True, return_counts=True)
        values = self._values(torch.zeros_like(different), different, None) / count[:, None]
        result = values.new_zeros(len(text.data), values.shape[1])
        first = 0
        for n, rows in enumerate(ends, start=1):
            own = values[number[first : first + len(rows)]] / n
            for back in range(n):
                result.index_add_(0, rows - back, own)
            first += len(rows)
        return result
