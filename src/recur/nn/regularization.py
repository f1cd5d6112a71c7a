"""What keeps a recurrent language model from learning its text by heart (Merity et al. 2018, "AWD-LSTM").

Weight drop is in `recur.nn.recurrent`, where the weights are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from recur.nn.packed import Layout

_LEVELS = 1 << 16  # of a random number of 16 bits


def dropout(values: Tensor, p: float) -> Tensor:
    """Dropout: each number is zero with probability p, the others are scaled by `1 / (1 - p)` (Srivastava et al. 2014).

    What `torch.nn.functional.dropout` does, whose masks take up to a tenth of a training step on a CPU: it draws 32
    bits a number and keeps the mask in the numbers' own type. Here four numbers share a draw of 64 bits, and the mask
    has a byte for each. p is rounded to a multiple of 2**-16 for that; the scale is that of the rounded one, so that
    means stay right. On another device, or with p so near to 0 or 1 that the rounding would show, it is torch's.

    Args:
        values: of any shape.
        p: within [0, 1].
    """
    if not p:
        return values
    level = round(p * _LEVELS)
    if values.device.type != "cpu" or not 0.001 <= p <= 0.999:
        return F.dropout(values, p)
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: values.numel()].view(values.shape) >= level - _LEVELS // 2
    return torch.where(kept, values, 0).mul_(_LEVELS / (_LEVELS - level))


def drop(rows: Tensor, batch_sizes: Tensor, p: float, *, locked: bool) -> Tensor:
    """Dropout on packed rows, `(rows, features)`: one mask a step, or one mask a sequence (`locked`)."""
    if not p:
        return rows
    return locked_dropout(rows, Layout(batch_sizes), p) if locked else dropout(rows, p)


def row_dropout(vectors: Tensor, ids: Tensor, vocab_size: int, p: float) -> Tensor:
    """Drop whole words of the vocabulary: all occurrences of a dropped word in this batch become zero.

    Equal to a mask of one number a row on the embedding matrix (Gal & Ghahramani 2016), without touching that matrix.

    Args:
        vectors: embedded tokens, `(tokens, embedding_dim)`.
        ids: their ids, `(tokens,)`.
        vocab_size: words of the vocabulary.
        p: probability of dropping a word; the others are scaled by `1 / (1 - p)`.
    """
    if not p:
        return vectors
    keep = dropout(vectors.new_ones(vocab_size), p)  # one draw a word, whatever the batch holds
    return vectors * keep[ids][:, None]


def activation_penalty(output: Tensor) -> Tensor:
    """AR: mean square of the last layer's dropped-out output, a scalar."""
    return output.square().mean()


def temporal_penalty(output: PackedSequence) -> Tensor:
    """TAR: mean square of the change of the last layer's undropped output from one step to the next, a scalar.

    A window of one step changes nowhere: 0.
    """
    rows, sizes = output.data, output.batch_sizes
    first, rest = int(sizes[0]), len(rows) - int(sizes[0])
    if not rest:
        return rows.new_zeros(())
    if int(sizes[-1]) == first:  # every step has all sequences: step t + 1 lies `first` rows behind step t
        return (rows[first:] - rows[:-first]).square().mean()
    starts = sizes.cumsum(0) - sizes
    before = torch.repeat_interleave(starts[:-1] - starts[1:], sizes[1:]) + torch.arange(first, len(rows))
    return (rows[first:] - rows[before.to(rows.device)]).square().mean()


def locked_dropout(data: Tensor, layout: Layout, p: float) -> Tensor:
    """Drop the same features of a sequence at all of its steps (Gal and Ghahramani 2016). `data`: `(rows, size)`."""
    mask = dropout(data.new_ones(layout.batch, data.shape[1]), p)
    if layout.even:
        return (data.unflatten(0, (-1, layout.batch)) * mask).flatten(0, 1)
    return data * mask[layout.places.to(data.device)]
