"""Texts in batches of about equally many tokens, and what was computed of them in the texts' own order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.data.buckets import Keep, Texts
from recur.data.cache import Ragged

BATCH_TOKENS = 32768  # rows a forward pass, padding-free; a longer text is a batch of its own


def as_texts(arrays: Sequence[NDArray[np.int32]], max_length: int | None = None, keep: Keep = "head") -> Texts:
    """Token ids of several texts, one array each, cut as `Texts` has it."""
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return Texts(Ragged(np.concatenate(arrays), offsets), max_length=max_length, keep=keep)


def batches(texts: Texts) -> Iterator[tuple[PackedSequence, NDArray[np.int64]]]:
    """Texts in batches of about `BATCH_TOKENS` tokens, longest first: the packed ids, and which texts they are."""
    order = np.argsort(-texts.lengths, kind="stable")
    total = np.cumsum(texts.lengths[order])
    first = 0
    while first < len(order):
        before = total[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(total, before + BATCH_TOKENS, side="right")))
        yield texts.pack(order[first:end])
        first = end


@torch.inference_mode()
def vectors(texts: Texts, read: Callable[[PackedSequence], Tensor], device: Any) -> NDArray[np.float32]:
    """A vector of each text.

    Args:
        texts: one or more.
        read: of packed ids, one row a text in packed order: `(batch, width)`.
        device: where it reads, a `torch.device`.

    Returns:
        `(texts, width)`, in the order of the texts.
    """
    rows, parts = [], []
    for packed, own in batches(texts):
        rows.append(own)
        parts.append(read(packed.to(device)).float().cpu().numpy())
    joined = np.concatenate(parts)
    result = np.empty_like(joined)
    result[np.concatenate(rows)] = joined
    return result
