"""How well a language model predicts a text that it reads window by window, without Lightning and without metrics."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.nn.language_model import Hidden
from recur.nn.packed import TokenWindow
from recur.nn.recurrent import State
from recur.tasks.language_modeling import LanguageModelingTask

_MOST_NATS = 700.0  # exp of more is no float


def figures(nll: float, tokens: int) -> dict[str, float]:
    """Loss and perplexity from a sum in nats; infinite or NaN where a model has diverged."""
    loss = nll / tokens
    return {"loss": loss, "perplexity": math.exp(loss) if loss < _MOST_NATS else math.inf}


@torch.no_grad()
def read(
    task: LanguageModelingTask, windows: Iterable[TokenWindow], *, carry: bool = True
) -> Iterator[tuple[TokenWindow, Hidden, Tensor]]:
    """Each window, what a model makes of it, and its targets on the model's device, `(rows,)`.

    Args:
        task: in evaluation mode.
        windows: of a text.
        carry: the state from window to window; else each is read from zeros, as by a run that was trained so.
    """
    state: State | None = None
    for window in windows:
        text: PackedSequence = window.text.to(task.device)  # type: ignore[arg-type]
        targets = window.targets.to(task.device)
        hidden = task.net(text, None if window.first or task.window is not None or not carry else state)
        state = hidden.state
        yield window, hidden, targets


@torch.no_grad()
def each_window_alone(task: LanguageModelingTask, windows: Iterable[TokenWindow]) -> dict[str, float]:
    """Loss and perplexity where every window is read from an empty state: how models of a fixed context are measured.

    Args:
        task: in evaluation mode.
        windows: of a text; the first token of each is predicted from the token before it.
    """
    total, tokens = 0.0, 0
    for _, hidden, targets in read(task, windows, carry=False):
        nll = task.token_loss(hidden, targets).nll
        total, tokens = total + float(nll.sum(dtype=torch.float64)), tokens + len(targets)
    return figures(total, tokens)
