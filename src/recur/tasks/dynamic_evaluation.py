"""Evaluation that adapts: dynamic evaluation and the neural cache."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.errors import UserError
from recur.nn.packed import TokenWindow
from recur.nn.recurrent import State, detach_state
from recur.tasks.language_modeling import LanguageModelingTask

LR, DECAY, EPSILON = 5e-5, 0.002, 2e-5  # of Krause et al. on WikiText-2
_FURTHER = 8  # rates on either side of those that are tried in any case
STREAMS, WINDOW = 100, 5  # of the training text that gradients are measured on
_MOST_NATS = 700.0  # exp of more is no float


def figures(nll: float, tokens: int) -> dict[str, float]:
    """Loss and perplexity from a sum in nats; infinite or NaN where a model has diverged."""
    loss = nll / tokens
    return {"loss": loss, "perplexity": math.exp(loss) if loss < _MOST_NATS else math.inf}


@dataclass(frozen=True)
class GradientStatistics:
    """How large the gradients of each weight are on training text.

    Attributes:
        rms: root mean square of each weight's gradient over the batches, shaped like the parameters.
        pull: each `rms` over the mean of the parameters' mean `rms`: 1 for an average weight.
        batches: over how many batches.
    """

    rms: list[Tensor]
    pull: list[Tensor]
    batches: int


def gradient_statistics(task: LanguageModelingTask, windows: Iterable[TokenWindow]) -> GradientStatistics:
    """Measure gradients on training text; never on the text that is to be scored.

    Krause et al. use windows of 5 tokens of 100 streams, so that one batch's gradient is a mean over 500 tokens.

    Args:
        task: in evaluation mode.
        windows: of training text.

    Raises:
        UserError: there is no window.
    """
    parameters = [p for p in task.parameters() if p.requires_grad]
    squares = [torch.zeros_like(p) for p in parameters]
    batches = 0
    for _, gradients in _scored(task, windows, parameters):
        batches += 1
        for square, gradient in zip(squares, gradients, strict=True):
            square.addcmul_(gradient, gradient)
    if not batches:
        raise UserError("the training text", rule="is too short to measure gradients on")
    rms = [(square / batches).sqrt() for square in squares]
    mean = torch.stack([one.mean() for one in rms]).mean()
    return GradientStatistics(rms, [one / mean for one in rms], batches)


def dynamic_evaluation(
    task: LanguageModelingTask,
    windows: Iterable[TokenWindow],
    statistics: GradientStatistics,
    *,
    lr: float = LR,
    decay: float = DECAY,
    epsilon: float = EPSILON,
) -> dict[str, float]:
    """Perplexity of a model that goes on learning from the text it is tested on (Krause et al. 2017).

    Every window is scored before it is learned from. Then each weight moves down the gradient `g` of the window's mean
    loss, scaled by the size of its gradients in training, and back towards what it was in training:
    `w += min(decay * pull, 1) (w_0 - w) - lr g / (rms + epsilon)`. The task gets its weights back.

    Args:
        task: in evaluation mode.
        windows: of the split, short ones (5 tokens), from one stream as in the paper.
        statistics: from `gradient_statistics`.
        lr: step size.
        decay: the paper's lambda, the pull back.
        epsilon: keeps steps of weights whose gradients are rare from being huge.

    Returns:
        loss and perplexity, infinite or NaN where the settings make the model diverge.
    """
    parameters = [p for p in task.parameters() if p.requires_grad]
    original = [p.detach().clone() for p in parameters]
    scale = [1 / (rms + epsilon) for rms in statistics.rms]
    back = [(decay * pull).clamp(max=1.0) for pull in statistics.pull]
    total, tokens = 0.0, 0
    try:
        for nll, gradients in _scored(task, windows, parameters):
            total, tokens = total + float(nll.sum(dtype=torch.float64)), tokens + len(nll)
            if not math.isfinite(total):
                break
            with torch.no_grad():
                for p, start, gradient, factor, rate in zip(parameters, original, gradients, scale, back, strict=True):
                    p.lerp_(start, rate)
                    p.addcmul_(gradient, factor, value=-lr)
    finally:
        with torch.no_grad():
            for p, start in zip(parameters, original, strict=True):
                p.copy_(start)
    return figures(total, tokens)


def tune_dynamic_evaluation(
    task: LanguageModelingTask,
    windows: Callable[[], Iterable[TokenWindow]],
    statistics: GradientStatistics,
    *,
    rates: Sequence[float] = (LR / 4, LR / 2, LR, 2 * LR, 4 * LR),
    decays: Sequence[float] = (DECAY / 4, DECAY, 4 * DECAY),
    epsilon: float = EPSILON,
) -> list[dict[str, float]]:
    """Try settings of `dynamic_evaluation` on validation text: the rates first, then the decays with the best rate.

    Args:
        task: in evaluation mode.
        windows: gives the windows of the validation text, or of a part of it, anew each time.
        statistics: from `gradient_statistics`.
        rates: values of `lr`, tried with a `decay` of .002. Where the lowest or the highest is best, its half or
            its double is tried, too, and so on until that no longer helps.
        decays: values of `decay`.
        epsilon: as in `dynamic_evaluation`.

    Returns:
        `lr`, `decay`, `epsilon`, `loss` and `perplexity` of each trial, the best first.

    Raises:
        UserError: the model diverges with every setting.
    """

    def trial(lr: float, decay: float) -> dict[str, float]:
        settings = {"lr": lr, "decay": decay, "epsilon": epsilon}
        return settings | dynamic_evaluation(task, windows(), statistics, **settings)

    def best_first(trials: list[dict[str, float]]) -> list[dict[str, float]]:
        return sorted(trials, key=lambda one: one["loss"] if math.isfinite(one["perplexity"]) else math.inf)

    trials = best_first([trial(lr, DECAY) for lr in rates])
    for factor in (2.0, 0.5):  # on beyond the end of the list, as long as that helps
        for _ in range(_FURTHER):
            lr = trials[0]["lr"] * factor
            if min(rates) < lr < max(rates) or not math.isfinite(trials[0]["perplexity"]):
                break
            trials = best_first([*trials, trial(lr, DECAY)])
            if trials[0]["lr"] != lr:
                break
    best = trials[0]["lr"]
    trials = best_first([*trials, *(trial(best, decay) for decay in decays if decay != DECAY)])
    if not math.isfinite(trials[0]["perplexity"]):
        raise UserError(
            "the rates of dynamic evaluation", list(rates), "make the model diverge, all of them", "lower them"
        )
    return trials


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
        size: states kept of each stream.
        flatness: the paper's theta; 0 is a plain unigram cache.
        weight: the paper's lambda.

    Returns:
        loss and perplexity.
    """
    state: State | None = None
    keys: Tensor | None = None  # (kept, streams, features)
    words: Tensor | None = None  # (kept, streams)
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
        following = targets.new_full((steps * streams,), -1)
        following[:rows] = targets
        new, followed = raw.view(steps, streams, -1), following.view(steps, streams)
        old = 0 if keys is None or window.first else len(keys)
        keys = new if not old or keys is None else torch.cat([keys, new])
        words = followed if not old or words is None else torch.cat([words, followed])
        scores = flatness * torch.einsum("tsf,isf->sti", new, keys)  # (streams, steps, kept)
        position = torch.arange(len(keys), device=task.device) - old
        step = torch.arange(steps, device=task.device)[:, None]
        visible = (position < step) & (position >= step - size)
        votes = scores.masked_fill(~visible, -math.inf).softmax(2)  # NaN where nothing is kept yet
        same = words.t()[:, None] == followed.t()[:, :, None]
        cached = torch.where(visible & same, votes, 0.0).sum(2).t().reshape(-1)[:rows]
        empty = (~visible.any(1)).repeat_interleave(streams)[:rows]
        probability = torch.where(empty, 1.0, 1 - weight) * (-nll).exp() + weight * torch.where(empty, 0.0, cached)
        total, tokens = total - float(probability.log().sum(dtype=torch.float64)), tokens + rows
        keys, words = keys[-size:], words[-size:]
    return figures(total, tokens)
