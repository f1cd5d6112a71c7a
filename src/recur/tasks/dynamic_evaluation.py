"""Evaluation that adapts: dynamic evaluation and the neural cache."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.nn.packed import TokenWindow
from recur.nn.recurrent import State, detach_state
from recur.tasks.language_modeling import LanguageModelingTask


def figures(nll: float, tokens: int) -> dict[str, float]:
    """Loss and perplexity from a sum in nats."""
    loss = nll / tokens
    return {"loss": loss, "perplexity": math.exp(loss)}


def dynamic_evaluation(
    task: LanguageModelingTask,
    windows: Iterable[TokenWindow],
    *,
    lr: float = 1e-3,
    decay: float = 0.02,
    statistics: Iterable[TokenWindow] | None = None,
) -> dict[str, float]:
    """Perplexity of a model that goes on learning from the text it is tested on (Krause et al. 2018).

    Every window is scored before it is learned from. Then each weight moves down the gradient and back towards what it
    was: `w += -lr g / (rms + eps) + decay r (w_0 - w)`, with `rms` the root mean square of its gradients over windows
    of training text and `r = rms / mean(rms)`, at most `1 / decay`. Without `statistics`, `rms + eps` and `r` are 1.
    The task gets its weights back.

    Args:
        task: in evaluation mode.
        windows: of the split, short ones (5 tokens are usual), best from one stream.
        lr: step size.
        decay: pull towards the original weights.
        statistics: windows of training text to measure `rms` on.

    Returns:
        loss and perplexity.
    """
    parameters = [p for p in task.parameters() if p.requires_grad]
    original = [p.detach().clone() for p in parameters]
    scale: list[Any] = [1.0] * len(parameters)
    pull: list[Any] = [decay] * len(parameters)
    if statistics is not None:
        squares = [torch.zeros_like(p) for p in parameters]
        count = 0
        for _, gradients in _scored(task, statistics, parameters):
            count += 1
            for square, gradient in zip(squares, gradients, strict=True):
                square.addcmul_(gradient, gradient)
        roots = [(square / max(count, 1)).sqrt() for square in squares]
        mean = torch.cat([root.flatten() for root in roots]).mean()
        scale = [1 / (root + 1e-8 + mean * 1e-3) for root in roots]
        pull = [(decay * root / mean).clamp(max=1.0) for root in roots]
    total, tokens = 0.0, 0
    try:
        for nll, gradients in _scored(task, windows, parameters):
            total, tokens = total + float(nll.sum(dtype=torch.float64)), tokens + len(nll)
            with torch.no_grad():
                for p, start, gradient, s, back in zip(parameters, original, gradients, scale, pull, strict=True):
                    p.add_(back * (start - p)).sub_(lr * gradient * s)
    finally:
        with torch.no_grad():
            for p, start in zip(parameters, original, strict=True):
                p.copy_(start)
    return figures(total, tokens)


def _scored(
    task: LanguageModelingTask, windows: Iterable[TokenWindow], parameters: list[torch.nn.Parameter]
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Each window's losses and the gradients of their mean."""
    state: State | None = None
    for window in windows:
        text: PackedSequence = window.text.to(task.device)  # type: ignore[arg-type]
        hidden = task.net(text, None if window.first else state)
        state = detach_state(hidden.state)
        loss, nll, _ = task.token_loss(hidden, window.targets.to(task.device))
        yield nll, torch.autograd.grad(loss, parameters)


@torch.no_grad()
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
        size: states remembered of each stream.
        flatness: the paper's theta; 0 is a plain unigram cache.
        weight: the paper's lambda.

    Returns:
        loss and perplexity.
    """
    state: State | None = None
    keys: Tensor | None = None  # (remembered, streams, features)
    words: Tensor | None = None  # (remembered, streams)
    total, tokens = 0.0, 0
    for window in windows:
        text: PackedSequence = window.text.to(task.device)  # type: ignore[arg-type]
        targets = window.targets.to(task.device)
        hidden = task.net(text, None if window.first else state)
        state = hidden.state
        nll = task.token_loss(hidden, targets).nll
        streams, rows = int(text.batch_sizes[0]), len(targets)
        steps = len(text.batch_sizes)
        raw = hidden.raw.data.new_zeros(steps * streams, hidden.raw.data.shape[1])
        raw[:rows] = hidden.raw.data  # a last step may lack some streams
        heard = targets.new_full((steps * streams,), -1)
        heard[:rows] = targets
        new, followed = raw.view(steps, streams, -1), heard.view(steps, streams)
        old = 0 if keys is None or window.first else len(keys)
        keys = new if not old or keys is None else torch.cat([keys, new])
        words = followed if not old or words is None else torch.cat([words, followed])
        scores = flatness * torch.einsum("tsf,isf->sti", new, keys)  # (streams, steps, remembered)
        position = torch.arange(len(keys), device=task.device) - old
        step = torch.arange(steps, device=task.device)[:, None]
        visible = (position < step) & (position >= step - size)
        votes = scores.masked_fill(~visible, -math.inf).softmax(2)  # NaN where nothing is remembered yet
        same = words.t()[:, None] == followed.t()[:, :, None]
        cached = torch.where(visible & same, votes, 0.0).sum(2).t().reshape(-1)[:rows]
        empty = (~visible.any(1)).repeat_interleave(streams)[:rows]
        probability = torch.where(empty, 1.0, 1 - weight) * (-nll).exp() + weight * torch.where(empty, 0.0, cached)
        total, tokens = total - float(probability.log().sum(dtype=torch.float64)), tokens + rows
        keys, words = keys[-size:], words[-size:]
    return figures(total, tokens)
