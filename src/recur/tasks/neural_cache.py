"""The neural cache: the states that a language model has just been in, and what followed them, vote with it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recur.nn.packed import TokenWindow
from recur.tasks.language_modeling import LanguageModelingTask
from recur.tasks.scoring import figures, read

FLATNESSES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)  # of states as long as those of the paper
WEIGHTS = (0.0, 0.02, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4)  # 0: the cache helps nothing


class _Votes(NamedTuple):
    """What model and cache say of a window's targets.

    Attributes:
        nll: of the model alone, nats, `(rows,)`.
        cached: probability by the cache, `(flatnesses, rows)`.
        empty: where nothing is cached yet, `(rows,)`.
    """

    nll: Tensor
    cached: Tensor
    empty: Tensor


def neural_cache(
    task: LanguageModelingTask,
    windows: Iterable[TokenWindow],
    *,
    size: int = 2000,
    flatness: float = 0.3,
    weight: float = 0.1,
) -> dict[str, float]:
    """Perplexity with a continuous cache (Grave, Joulin & Usunier 2017).

    The last `size` states of a stream and the tokens that followed them vote for the next token:
    `p = (1 - weight) p_model + weight p_cache`, `p_cache(w) ~ sum over i with x_{i+1} = w of exp(flatness h_t . h_i)`.

    Args:
        task: in evaluation mode.
        windows: of the split.
        size: states kept of each stream.
        flatness: the paper's theta; 0 is a plain unigram cache.
        weight: the paper's lambda.

    Returns:
        loss and perplexity.
    """
    total, tokens = 0.0, 0
    for votes in _votes(task, windows, size, [flatness]):
        total, tokens = total + float(_mixed(votes, weight)[0]), tokens + len(votes.nll)
    return figures(total, tokens)


def tune_neural_cache(
    task: LanguageModelingTask,
    windows: Iterable[TokenWindow],
    *,
    size: int = 2000,
    flatnesses: Sequence[float] = FLATNESSES,
    weights: Sequence[float] = WEIGHTS,
) -> list[dict[str, float]]:
    """Try every pair of settings of `neural_cache` on validation text, in one pass over it.

    Args:
        task: in evaluation mode.
        windows: of the validation text.
        size: states kept of each stream.
        flatnesses: values of `flatness`.
        weights: values of `weight`.

    Returns:
        `size`, `flatness`, `weight`, `loss` and `perplexity` of each trial, the best first.
    """
    totals, tokens = torch.zeros(len(weights), len(flatnesses), dtype=torch.float64), 0
    for votes in _votes(task, windows, size, flatnesses):
        totals += torch.stack([_mixed(votes, weight).cpu() for weight in weights])
        tokens += len(votes.nll)
    trials = [
        {"size": size, "flatness": flatness, "weight": weight, **figures(float(totals[w, f]), tokens)}
        for w, weight in enumerate(weights)
        for f, flatness in enumerate(flatnesses)
    ]
    return sorted(trials, key=lambda one: one["loss"])


def _mixed(votes: _Votes, weight: float) -> Tensor:
    """Summed loss of a window in nats with each flatness, `(flatnesses,)` in float64."""
    own = torch.where(votes.empty, 0.0, math.log1p(-weight)) - votes.nll
    cached = (weight * torch.where(votes.empty, 0.0, votes.cached)).log()
    return -torch.logaddexp(own.expand_as(cached), cached).sum(1, dtype=torch.float64)


@torch.no_grad()
def _votes(
    task: LanguageModelingTask, windows: Iterable[TokenWindow], size: int, flatnesses: Sequence[float]
) -> Iterator[_Votes]:
    """What model and cache say of each window's targets; the cache holds what stands before each token."""
    keys: Tensor | None = None  # (kept, streams, features)
    words: Tensor | None = None  # (kept, streams)
    for window, hidden, targets in read(task, windows):
        nll = task.token_loss(hidden, targets).nll
        streams, rows = int(window.text.batch_sizes[0]), len(targets)
        steps = len(window.text.batch_sizes)
        raw = hidden.raw.data.new_zeros(steps * streams, hidden.raw.data.shape[1])
        raw[:rows] = hidden.raw.data  # a last step may lack some streams
        following = targets.new_full((steps * streams,), -1)
        following[:rows] = targets
        new, followed = raw.view(steps, streams, -1), following.view(steps, streams)
        old = 0 if keys is None or window.first else len(keys)
        keys = new if not old or keys is None else torch.cat([keys, new])
        words = followed if not old or words is None else torch.cat([words, followed])
        alike = torch.einsum("tsf,isf->sti", new, keys)  # (streams, steps, kept)
        position = torch.arange(len(keys), device=task.device) - old
        step = torch.arange(steps, device=task.device)[:, None]
        visible = (position < step) & (position >= step - size)
        same = words.t()[:, None] == followed.t()[:, :, None]
        cached = []
        for flatness in flatnesses:
            shares = (flatness * alike).masked_fill(~visible, -math.inf).softmax(2)  # NaN where nothing is kept yet
            cached.append(torch.where(visible & same, shares, 0.0).sum(2).t().reshape(-1)[:rows])
        empty = (~visible.any(1)).repeat_interleave(streams)[:rows]
        yield _Votes(nll, torch.stack(cached), empty)
        keys, words = keys[-size:], words[-size:]
