"""A temperature for a language model's logits, chosen on validation text (Guo et al. 2017).

A model that has learnt its training text by heart is too sure of itself elsewhere.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from recur.nn.losses import linear_cross_entropy
from recur.nn.packed import TokenWindow
from recur.tasks.language_modeling import LanguageModelingTask
from recur.tasks.scoring import figures, read

COLDEST, HOTTEST = 0.5, 2.0  # that are tried
NARROW = 1.002  # factor within which the best is found
_GOLDEN = (math.sqrt(5) - 1) / 2


def at_temperature(task: LanguageModelingTask, windows: Iterable[TokenWindow], temperature: float) -> dict[str, float]:
    """Loss and perplexity where the logits are divided by a temperature: above 1 the model is less sure of itself.

    Args:
        task: in evaluation mode.
        windows: of the split.
        temperature: above 0; 1 changes nothing.
    """
    total, tokens = 0.0, 0
    for rows, targets in _features(task, windows):
        total, tokens = total + _loss_at(task, rows, targets, temperature), tokens + len(targets)
    return figures(total, tokens)


def tune_temperature(task: LanguageModelingTask, windows: Callable[[], Iterable[TokenWindow]]) -> float:
    """The temperature from .5 to 2 that is best on validation text, to a fifth of a percent.

    The loss is convex in 1 / temperature (a log-sum-exp of linear functions), so golden-section search finds its
    minimum.

    Args:
        task: in evaluation mode.
        windows: gives the windows of the validation text, or of a part of it.
    """
    known = list(_features(task, windows()))

    def loss(inverse: float) -> float:
        return sum(_loss_at(task, rows, targets, 1 / inverse) for rows, targets in known)

    low, high = 1 / HOTTEST, 1 / COLDEST
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    losses = [loss(inverse) for inverse in inner]
    while high / low > NARROW:
        if losses[0] < losses[1]:
            high = inner[1]
            inner = [high - _GOLDEN * (high - low), inner[0]]
            losses = [loss(inner[0]), losses[0]]
        else:
            low = inner[0]
            inner = [inner[1], low + _GOLDEN * (high - low)]
            losses = [losses[1], loss(inner[1])]
    return 2 / (low + high)


def _features(task: LanguageModelingTask, windows: Iterable[TokenWindow]) -> Iterator[tuple[Tensor, Tensor]]:
    """What the output layer is given for each window, `(rows, features)`, and the targets."""
    for _, hidden, targets in read(task, windows):
        rows = hidden.features
        used = rows if len(rows) == len(targets) else rows[-len(targets) :].clone()  # not to keep the others alive
        yield used.to(task.net.decoder.weight.dtype), targets


@torch.no_grad()
def _loss_at(task: LanguageModelingTask, rows: Tensor, targets: Tensor, temperature: float) -> float:
    """Summed loss in nats; to divide what the layer is given, and its bias, divides its logits."""
    decoder = task.net.decoder
    bias = None if decoder.bias is None else decoder.bias / temperature
    nll = linear_cross_entropy(rows / temperature, decoder.weight, bias, targets).nll
    return float(nll.sum(dtype=torch.float64))
