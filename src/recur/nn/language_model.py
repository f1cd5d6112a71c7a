"""The language model: embedding, recurrent stack, and a decoder that may share the embedding's weights."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from recur.nn.arguments import ArgumentError
from recur.nn.recurrent import Recurrent, State
from recur.nn.regularization import drop, row_dropout


class Hidden(NamedTuple):
    """What the model knows after each token.

    Attributes:
        features: what the decoder reads, `(tokens, decoder width)`.
        dropped: last layer's output after dropout, `(tokens, output_dim)`, for the activation penalty.
        raw: the same before dropout, packed, for the temporal penalty.
        state: to carry into the next window; attached to this window's graph.
    """

    features: Tensor
    dropped: Tensor
    raw: PackedSequence
    state: State


class LanguageModel(nn.Module):
    """Predicts the token that follows each token.

    The guides' `LanguageModelWithTying` is `embedding_dim == hidden_size`, one layer, no dropout. AWD-LSTM is
    `embedding_dim=400, hidden_size=1150, num_layers=3`, locked dropout at every site, row dropout and weight drop: its
    last layer has the embedding's size, so that the decoder can be tied.

    Embeddings (and an untied decoder) start from U(-.1, .1) and decoder biases from 0: with torch's N(0, 1) the logits
    of tied weights would start with a standard deviation of sqrt(embedding_dim).

    Args:
        vocab_size: number of token ids.
        embedding_dim: size of a word vector.
        hidden_size: size of the recurrent state.
        num_layers: recurrent layers.
        cell: a key of `recur.nn.CELLS`.
        output_size: hidden size of the last layer; None for `hidden_size`.
        tie_weights: let the decoder use the embedding's weights (Press & Wolf 2017; Inan et al. 2017).
        project: put a linear layer between the last hidden state and the decoder; it lets sizes differ under tying.
        row_dropout: chance that a word's vector is zero wherever it stands in the window.
        embedding_dropout: dropout on the embedded tokens.
        dropout: dropout between recurrent layers (needs two of them).
        output_dropout: dropout on the last layer's output.
        locked_dropout: one mask for all steps of a stream at the last three sites, instead of one a step.
        weight_drop: DropConnect on every hidden-to-hidden weight.
        state_dropout: dropout on the hidden state between steps, see `recur.nn.state_dropout`.
        forget_bias: initial forget-gate bias of an LSTM; None keeps torch's own.
        engine: `auto`, `fused` or `torch`; see `recur.nn.engine`.
        cell_options: what the cell takes besides, such as `{rounds: 5}` of a mogrifier; None for nothing.
        embedding_range: word vectors begin uniform between minus and plus this. Under Adam, .1 (for which SGD with a
            large rate makes up) is so little that a net of characters learns several times as slowly as with .5 or 1.
        freeze_vectors: keep the word vectors, and with them tied weights, as they are; for those of another run.

    Raises:
        ValueError: a size below 1, a rate outside [0, 1), sizes that cannot be tied.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        embedding_dim: int = 200,
        hidden_size: int = 200,
        num_layers: int = 2,
        cell: str = "lstm",
        output_size: int | None = None,
        tie_weights: bool = True,
        project: bool = False,
        row_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        locked_dropout: bool = False,
        weight_drop: float = 0.0,
        state_dropout: float = 0.0,
        forget_bias: float | None = 1.0,
        engine: str = "auto",
        cell_options: Mapping[str, Any] | None = None,
        embedding_range: float = 0.1,
        freeze_vectors: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < embedding_range < math.inf:
            raise ArgumentError("embedding_range", f"must be above 0 and finite, got {embedding_range}")
        for name, size in (("vocab_size", vocab_size), ("embedding_dim", embedding_dim)):
            if size < 1:
                raise ArgumentError(name, f"must be at least 1, got {size}")
        for name, rate in (
            ("row_dropout", row_dropout),
            ("embedding_dropout", embedding_dropout),
            ("output_dropout", output_dropout),
        ):
            if not 0 <= rate < 1:
                raise ArgumentError(name, f"must lie in [0, 1), got {rate}")
        last = hidden_size if output_size is None else output_size
        for name, size in (("hidden_size", hidden_size), ("output_size", last)):
            if size < 1:  # here already: tying would speak of other things
                raise ArgumentError(name, f"must be at least 1, got {size}")
        if tie_weights and not project and embedding_dim != last:
            other = "hidden_size" if output_size is None else "output_size"
            raise ArgumentError(
                "tie_weights",
                f"needs embedding_dim == {other} or a projection, got {embedding_dim} and {last}: "
                "set model.net.project=true or untie with model.net.tie_weights=false",
            )
        self.vocab_size = vocab_size
        self.tie_weights, self.locked_dropout = tie_weights, locked_dropout
        self.row_dropout, self.embedding_dropout, self.output_dropout = row_dropout, embedding_dropout, output_dropout

        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.recurrent = Recurrent(
            embedding_dim,
            hidden_size,
            num_layers,
            cell=cell,
            dropout=dropout,
            locked_dropout=locked_dropout,
            weight_drop=weight_drop,
            state_dropout=state_dropout,
            output_size=output_size,
            forget_bias=forget_bias,
            engine=engine,
            **(cell_options or {}),
        )
        self.projection = nn.Linear(last, embedding_dim) if project else None
        self.decoder = nn.Linear(embedding_dim if project else last, vocab_size)
        nn.init.uniform_(self.embedding.weight, -embedding_range, embedding_range)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tie_weights:
            self.decoder.weight = self.embedding.weight
        self.embedding.weight.requires_grad_(not freeze_vectors)

    def embed(self, text: PackedSequence) -> Tensor:
        """Word vectors of packed ids, dropped out in training: `(tokens,)` to `(tokens, embedding_dim)`."""
        vectors: Tensor = self.embedding(text.data)  # (tokens, embedding_dim)
        if not self.training:
            return vectors
        vectors = row_dropout(vectors, text.data, self.vocab_size, self.row_dropout)
        return drop(vectors, text.batch_sizes, self.embedding_dropout, locked=self.locked_dropout)

    def forward(self, text: PackedSequence, state: State | None = None) -> Hidden:
        """Read packed ids, from a carried state or from zeros.

        Args:
            text: ids, `data` of shape `(tokens,)` int64.
            state: what the window before returned, detached; None for zeros.
        """
        raw, state = self.recurrent(PackedSequence(self.embed(text), text.batch_sizes), state)
        dropped = raw.data  # (tokens, output_dim)
        if self.training:
            dropped = drop(dropped, text.batch_sizes, self.output_dropout, locked=self.locked_dropout)
        features = dropped if self.projection is None else self.projection(dropped)
        return Hidden(features, dropped, raw, state)

    def logits(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token: `(tokens, decoder width)` to `(tokens, vocab_size)`.

        For losses use `recur.nn.losses.linear_cross_entropy`, which never forms this matrix.
        """
        return F.linear(features, self.decoder.weight, self.decoder.bias)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Feed one token of each of several texts: `(batch,)` int64 to logits `(batch, vocab_size)` and the state."""
        hidden = self(PackedSequence(ids, torch.tensor([len(ids)])), state)
        return self.logits(hidden.features), hidden.state
