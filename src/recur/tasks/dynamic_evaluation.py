"""Dynamic evaluation: a language model that goes on learning from the text that it is tested on."""

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
from recur.tasks.scoring import figures

LR, DECAY, EPSILON = 5e-5, 0.002, 2e-5  # of Krause et al. on WikiText-2
_FURTHER = 8  # rates on either side of those that are tried in any case
STREAMS, WINDOW = 100, 5  # of the training text that gradients are measured on


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
            tried = min(rates) < lr < max(rates) or lr in [one["lr"] for one in trials]
            if tried or not math.isfinite(trials[0]["perplexity"]):
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
