"""The text classifier: embedding, recurrent stack, pooling, one linear layer; packed from end to end."""

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recur.nn.arguments import ArgumentError
from recur.nn.ngrams import NgramScores
from recur.nn.packed import Layout, max_over_time, mean_over_time
from recur.nn.recurrent import Recurrent, State
from recur.nn.regularization import dropout, locked_dropout

POOLINGS = ("last", "max", "mean", "concat")


class Classifier(nn.Module):
    """Recurrent text classifier.

    The guides' `AdvancedLSTM` is `embedding_dim=100, hidden_size=256, num_layers=2, bidirectional=True`, every dropout
    .5, `pooling="last"`, two classes; their `BiLSTM_Classifier` has one layer and embedding dropout .1.

    Args:
        vocab_size: number of token ids.
        num_classes: number of classes; 2 gives one logit (of class 1), more give one logit each.
        embedding_dim: size of a word vector.
        embedding_std: standard deviation of the initial word vectors. torch's own is 1; at .1 Adam, whose steps do not
            grow with the vectors, turns them ten times sooner, and words too rare to be learnt disturb less.
        hidden_size: size of the recurrent state, per direction.
        num_layers: recurrent layers.
        cell: a key of `recur.nn.CELLS`.
        bidirectional: read both ways.
        word_dropout: chance that a token's whole vector is zeroed, in training.
        embedding_dropout: dropout on the embedded tokens.
        dropout: dropout between recurrent layers (needs two of them).
        head_dropout: dropout on the pooled text.
        locked_dropout: let `embedding_dropout` and `dropout` use one mask for all steps of a sequence (Gal & Ghahramani
            2016).
        weight_drop: DropConnect on the hidden-to-hidden weights (Merity et al. 2018).
        pooling: `last` (final state of each direction), `max`, `mean` over the steps, or `concat` of the three.
        forget_bias: initial forget-gate bias of an LSTM; None keeps torch's own.
        engine: `auto`, `fused` or `torch`; see `recur.nn.engine`.
        ngrams: settings of `recur.nn.ngrams.NgramScores`, with whose scores predictions are averaged; None for none.
        cell_options: what the cell takes besides, such as `{rounds: 5}` of a mogrifier; None for nothing.
        vectors: initial word vectors `(vocab_size, embedding_dim)`, or None.
        scale_vectors: bring each of `vectors` to the length that `embedding_std` gives random ones. word2vec leaves
            frequent words ten times longer than rare ones, long enough to saturate the gates.
        freeze_vectors: keep the word vectors as they are.

    Raises:
        ValueError: a size below 1, a rate outside [0, 1), an unknown pooling, vectors of another shape.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        *,
        embedding_dim: int = 100,
        embedding_std: float = 1.0,
        hidden_size: int = 256,
        num_layers: int = 1,
        cell: str = "lstm",
        bidirectional: bool = True,
        word_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        locked_dropout: bool = False,
        weight_drop: float = 0.0,
        pooling: str = "last",
        forget_bias: float | None = 1.0,
        engine: str = "auto",
        cell_options: Mapping[str, Any] | None = None,
        ngrams: Mapping[str, Any] | None = None,
        vectors: Tensor | None = None,
        scale_vectors: bool = True,
        freeze_vectors: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("embedding_dim", embedding_dim)):
            if size < 1:
                raise ArgumentError(name, f"must be at least 1, got {size}")
        if num_classes < 2:
            rule = f"must be at least 2, got {num_classes}: give texts of two labels or more"
            raise ArgumentError("num_classes", rule)
        rates = {"word_dropout": word_dropout, "embedding_dropout": embedding_dropout, "head_dropout": head_dropout}
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise ArgumentError(name, f"must lie in [0, 1), got {rate}")
        if pooling not in POOLINGS:
            raise ArgumentError("pooling", f"is one of {', '.join(POOLINGS)}, got {pooling!r}")
        if not 0 < embedding_std < math.inf:
            raise ArgumentError("embedding_std", f"must be above 0, got {embedding_std}")
        self.pooling = pooling
        self.locked_dropout = locked_dropout
        self.word_dropout, self.embedding_dropout, self.head_dropout = word_dropout, embedding_dropout, head_dropout

        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=embedding_std)
        if vectors is not None:
            if tuple(vectors.shape) != (vocab_size, embedding_dim):
                raise ValueError(
                    f"word vectors have shape {tuple(vectors.shape)}, the model wants {(vocab_size, embedding_dim)}: "
                    f"set model.net.embedding_dim={vectors.shape[-1]}"
                )
            if scale_vectors:
                vectors = nn.functional.normalize(vectors, dim=1) * (embedding_std * math.sqrt(embedding_dim))
            with torch.no_grad():
                self.embedding.weight.copy_(vectors)
        elif freeze_vectors:
            rule = "would freeze random vectors, since there are no word vectors: set data.vectors too"
            raise ArgumentError("freeze_vectors", rule)
        self.embedding.weight.requires_grad_(not freeze_vectors)

        self.recurrent = Recurrent(
            embedding_dim,
            hidden_size,
            num_layers,
            cell=cell,
            bidirectional=bidirectional,
            dropout=dropout,
            locked_dropout=locked_dropout,
            weight_drop=weight_drop,
            forget_bias=forget_bias,
            engine=engine,
            **(cell_options or {}),
        )
        width = self.recurrent.output_dim * (3 if pooling == "concat" else 1)
        self.head = nn.Linear(width, 1 if num_classes == 2 else num_classes)
        self.ngrams = None if ngrams is None else _ngram_scores(num_classes, ngrams)

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer, from the head down to the word vectors."""
        recurrent = dict(self.recurrent.named_parameters())
        below = [
            [own for name, own in recurrent.items() if re.search(r"_l(\d+)", name)[1] == str(index)]  # type: ignore[index]
            for index in reversed(range(self.recurrent.num_layers))
        ]
        return [[*self.head.parameters()], *below, [*self.embedding.parameters()]]

    def embed(self, text: PackedSequence) -> Tensor:
        """Word vectors of the packed ids, dropped out in training: `(tokens,)` to `(tokens, embedding_dim)`."""
        vectors: Tensor = self.embedding(text.data)  # (tokens, embedding_dim)
        if not self.training:
            return vectors
        if self.word_dropout:
            vectors = vectors * dropout(vectors.new_ones(len(vectors), 1), self.word_dropout)
        if self.embedding_dropout and self.locked_dropout:
            return locked_dropout(vectors, Layout(text.batch_sizes), self.embedding_dropout)
        return dropout(vectors, self.embedding_dropout)

    def classify(self, vectors: Tensor, text: PackedSequence) -> Tensor:
        """Logits from embedded tokens, for gradients with respect to the embedding.

        Args:
            vectors: `(tokens, embedding_dim)`, the rows of `text`.
            text: the packed ids, for their layout.

        Returns:
            `(batch, 1)` for two classes, else `(batch, num_classes)`, in the order the texts were given.
        """
        states, final = self.recurrent(PackedSequence(vectors, text.batch_sizes))  # rows: (tokens, width)
        features = pooled(self.recurrent, states, final, self.pooling)
        with torch.autocast(features.device.type, enabled=False):  # scores of three digits would tie
            features = features.to(self.head.weight.dtype)
            logits: Tensor = self.head(dropout(features, self.head_dropout) if self.training else features)
        return logits if text.unsorted_indices is None else logits[text.unsorted_indices]

    def features(self, text: PackedSequence) -> Tensor:
        """What the head reads of each of several texts.

        Args:
            text: packed ids, `data` of shape `(tokens,)` int64.

        Returns:
            The pooled text, `(batch, width or 3 * width)`, in the order the texts were given.
        """
        states, final = self.recurrent(PackedSequence(self.embed(text), text.batch_sizes))
        features = pooled(self.recurrent, states, final, self.pooling)
        return features if text.unsorted_indices is None else features[text.unsorted_indices]

    def forward(self, text: PackedSequence) -> Tensor:
        """Logits of packed token ids; see `classify` for the shapes. In training those of the network alone."""
        logits = self.classify(self.embed(text), text)
        return logits if self.ngrams is None or self.training else self.ngrams.average(logits, text)


def pooled(recurrent: Recurrent, states: PackedSequence, final: State, pooling: str) -> Tensor:
    """One vector a text from the states of its steps.

    Args:
        recurrent: what read the texts.
        states: its top layer's, rows `(tokens, width)`.
        final: the states that it ended with.
        pooling: one of `POOLINGS`.

    Returns:
        `(batch, width)`, or `(batch, 3 * width)` for `concat`, in packed order.
    """
    if pooling == "last":
        return recurrent.last_outputs(states, final)
    if pooling == "max":
        return max_over_time(states)
    if pooling == "mean":
        return mean_over_time(states)
    return torch.cat([recurrent.last_outputs(states, final), max_over_time(states), mean_over_time(states)], dim=1)


def _ngram_scores(num_classes: int, settings: Mapping[str, Any]) -> NgramScores:
    known = [name for name in inspect.signature(NgramScores).parameters if name != "num_classes"]
    if unknown := [str(key) for key in settings if key not in known]:
        raise ArgumentError("ngrams", f"takes no {unknown[0]}, but {', '.join(known)}")
    return NgramScores(num_classes, **settings)
