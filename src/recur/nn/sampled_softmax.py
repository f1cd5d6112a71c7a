"""The output layer over a sample of the vocabulary: what a step costs no longer grows with the number of words.

Jean et al. (2015) and Bengio & Senécal (2008): the sum over all words in `nll = log(sum_w exp z_w) - z_y` is estimated
from some of them. One set C of candidates serves all rows of a step: the step's own targets, and `negatives` draws from
a log-uniform distribution over the words' ranks by frequency, which is close to Zipf's law. A word w is a candidate
with probability

    pi_w = 1 - (1 - q_w)^S (1 - p_w)^N

for S draws with probability q_w each and N targets, each of which is w with probability p_w. Dividing by it makes the
sum right in the mean (Horvitz & Thompson 1952), which is the "logQ correction" of the logits:

    nll ~ log(sum over w in C of exp(z_w - log pi_w)) - z_y

The gradients are those of the fused loss over the candidates' rows of the output weights. Right in the mean is the
sum over the draws; a row's own target is a candidate for certain. Its term divided by `pi` moves no minimum, but would
make a good model look worse than it is: what is reported counts it once, undivided.
"""

import math

import torch
from torch import Tensor, nn

from recur.nn.arguments import ArgumentError
from recur.nn.losses import TokenLoss, linear_cross_entropy


class SampledSoftmax(nn.Module):
    """Cross-entropy of the output layer, estimated from a sample of the vocabulary.

    Args:
        vocab_size: number of token ids.
        negatives: draws a step.

    Attributes:
        frequencies: share of each token in the training text, `(vocab_size,)` float32; equal until `count`.
        by_rank: token ids, most frequent first, `(vocab_size,)` int64.
        candidates_taken: over how many words the last step's losses were taken.

    Raises:
        ArgumentError: fewer than one draw.
    """

    frequencies: Tensor
    by_rank: Tensor

    def __init__(self, vocab_size: int, negatives: int) -> None:
        super().__init__()
        if negatives < 1:
            raise ArgumentError("negatives", f"must be at least 1, got {negatives}")
        self.negatives, self.candidates_taken = negatives, 0
        self.register_buffer("frequencies", torch.full((vocab_size,), 1 / vocab_size))
        self.register_buffer("by_rank", torch.arange(vocab_size))

    @torch.no_grad()
    def count(self, ids: Tensor) -> None:
        """Learn the words' frequencies from the ids of the training text, `(tokens,)`."""
        counts = torch.bincount(ids, minlength=len(self.by_rank))
        self.frequencies.copy_(counts / max(1, len(ids)))
        self.by_rank.copy_(counts.argsort(descending=True, stable=True))

    @torch.no_grad()
    def candidates(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the words over which a step's losses are taken.

        Args:
            targets: `(rows,)` int64.

        Returns:
            The candidates' ids in ascending order, `(candidates,)`; `log pi` of each; and the place of each target
            among them, `(rows,)`.
        """
        vocabulary = len(self.by_rank)
        # The inverse of the distribution function log(rank + 1) / log(vocabulary + 1), ranks from 0
        uniform = torch.rand(self.negatives, dtype=torch.float64, device=targets.device)
        ranks = ((uniform * math.log(vocabulary + 1)).exp() - 1).long().clamp_(max=vocabulary - 1)
        chosen = torch.zeros(vocabulary, dtype=torch.bool, device=targets.device)
        chosen[self.by_rank[ranks]] = True
        chosen[targets] = True
        ids = chosen.nonzero().squeeze(1)
        place = chosen.cumsum(0) - 1
        return ids, self._log_inclusion(len(targets))[ids], place[targets]

    def _log_inclusion(self, rows: int) -> Tensor:
        """`log pi` of every word for so many targets, `(vocab_size,)`."""
        vocabulary = len(self.by_rank)
        ranks = torch.arange(vocabulary, dtype=torch.float64, device=self.by_rank.device)
        drawn = ((ranks + 2) / (ranks + 1)).log() / math.log(vocabulary + 1)  # q by rank
        missed = self.negatives * torch.log1p(-drawn)  # log of the chance that no draw is the word
        missed = torch.empty_like(missed).index_copy_(0, self.by_rank, missed)
        missed += rows * torch.log1p(-self.frequencies.double().clamp(max=1 - 1e-12))
        return torch.log(-torch.expm1(missed)).float()

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> TokenLoss:
        """Estimated cross-entropy.

        Args:
            features: what the output layer reads, `(rows, features)`.
            weight: output weights, `(vocab_size, features)`.
            bias: `(vocab_size,)`.
            targets: `(rows,)` int64.

        Returns:
            Mean loss to differentiate, and to be reported each row's estimated negative log-likelihood, in nats, which
            is never above the loss.
        """
        ids, log_inclusion, place = self.candidates(targets)
        self.candidates_taken = len(ids)
        rows, offsets = nn.functional.embedding(ids, weight), bias[ids] - log_inclusion
        exact = linear_cross_entropy(features, rows, offsets, place)
        # The fused loss subtracts the corrected logit of the target; its own is meant.
        correction = log_inclusion[place]
        nll = exact.nll - correction
        share = (-nll - correction).exp()  # of the estimated sum that is the target's, divided by its pi
        own = (1 - correction.exp()) * share  # of it what the division added
        return TokenLoss(exact.loss - correction.mean(), nll + torch.log1p(-own.clamp(max=1 - 1e-6)), None)
