"""Dynamic evaluation against a naive implementation of the paper."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recur.data.streams import StreamLoader
from recur.errors import UserError
from recur.tasks import dynamic_evaluation as module
from recur.tasks.dynamic_evaluation import (
    dynamic_evaluation,
    gradient_statistics,
    tune_dynamic_evaluation,
)
from support.language_models import assert_same, static, weights


def short(data, split: str = "test", streams: int = 1, windows: int | None = None):
    loader = StreamLoader(data.tokens(split), batch_size=streams, bptt=5, start_id=data.start_id)
    return list(islice(loader, windows))


def reference(task, training, scored, lr: float, decay: float, epsilon: float) -> float:
    """The paper, written down: whole arrays in numpy, gradients from `backward`, the state carried by hand."""

    def gradients(window, state):
        task.zero_grad()
        hidden = task(window, None if window.first else state)
        logits = task.net.logits(hidden.features)
        loss = F.cross_entropy(logits, window.targets)
        loss.backward()
        return loss, [tuple(part.detach() for part in layer) for layer in hidden.state]

    parameters = list(task.parameters())
    squares, state = [np.zeros(tuple(p.shape)) for p in parameters], None
    for window in training:
        _, state = gradients(window, state)
        squares = [square + p.grad.numpy() ** 2 for square, p in zip(squares, parameters, strict=True)]
    rms = [np.sqrt(square / len(training)) for square in squares]
    mean = np.mean([one.mean() for one in rms])
    start = [p.detach().numpy().copy() for p in parameters]
    total, tokens, state = 0.0, 0, None
    for window in scored:
        loss, state = gradients(window, state)
        total, tokens = total + loss.item() * len(window.targets), tokens + len(window.targets)
        for p, first, size in zip(parameters, start, rms, strict=True):
            old = p.detach().numpy().copy()
            pull = np.minimum(decay * size / mean, 1.0)
            new = old + pull * (first - old) - lr * p.grad.numpy() / (size + epsilon)
            with torch.no_grad():
                p.copy_(torch.from_numpy(new))
    with torch.no_grad():
        for p, first in zip(parameters, start, strict=True):
            p.copy_(torch.from_numpy(first))
    task.zero_grad()
    return total / tokens


@pytest.mark.parametrize(("lr", "decay", "epsilon"), [(5e-5, 0.002, 2e-5), (1e-2, 0.3, 1e-3), (1e-3, 0.0, 1e-4)])
def test_it_equals_a_naive_implementation(trained, lr, decay, epsilon):
    data, task = trained
    exact = task.double()
    try:
        training, scored = short(data, "train", 20, 30), short(data, windows=60)
        expected = reference(exact, training, scored, lr, decay, epsilon)
        statistics = gradient_statistics(exact, training)
        ours = dynamic_evaluation(exact, scored, statistics, lr=lr, decay=decay, epsilon=epsilon)
    finally:
        task.float()
    assert ours["loss"] == pytest.approx(expected, rel=1e-9)
    assert ours["perplexity"] == pytest.approx(math.exp(expected), rel=1e-9)


def test_it_scores_before_it_learns_and_gives_the_weights_back(trained):
    data, task = trained
    before, still = weights(task), static(task, data.loader("test"))
    statistics = gradient_statistics(task, short(data, "train", 20, 30))
    assert statistics.batches == 20
    assert dynamic_evaluation(task, data.loader("test"), statistics, lr=0.0)["loss"] == pytest.approx(still, rel=1e-6)
    moved = dynamic_evaluation(task, short(data), statistics, lr=1e-3)["loss"]
    assert moved != pytest.approx(still, rel=1e-4)
    first = next(iter(data.loader("test")))
    alone = dynamic_evaluation(task, [first], statistics, lr=9.0)["loss"]
    assert alone == pytest.approx(static(task, [first]), rel=1e-6)
    assert_same(before, weights(task))


def test_the_paper_s_settings_help_on_a_text_that_repeats_itself(trained):
    data, task = trained
    statistics = gradient_statistics(task, short(data, "train", 100))
    again = short(data, windows=1) * 200
    assert dynamic_evaluation(task, again, statistics)["loss"] < static(task, again) - 0.1


def test_settings_that_diverge_give_no_figure_and_are_never_chosen(trained):
    data, task = trained
    before = weights(task)
    statistics = gradient_statistics(task, short(data, "train", 20, 30))
    assert not math.isfinite(dynamic_evaluation(task, short(data), statistics, lr=1e30)["perplexity"])
    with pytest.raises(UserError, match="diverge"):
        tune_dynamic_evaluation(task, lambda: short(data, "val", 1, 20), statistics, rates=[1e30], decays=[])
    trials = tune_dynamic_evaluation(
        task, lambda: short(data, "val", 1, 40), statistics, rates=[1e-6, 1e-4, 1e30], decays=[0.0005, 0.05]
    )
    assert len(trials) == 5 and trials[0]["lr"] < 1 and trials[0]["loss"] == min(t["loss"] for t in trials[:4])
    found = dynamic_evaluation(
        task, short(data, "val", 1, 40), statistics, lr=trials[0]["lr"], decay=trials[0]["decay"]
    )
    assert found["loss"] == pytest.approx(trials[0]["loss"], rel=1e-9)
    assert_same(before, weights(task))


@pytest.mark.parametrize("rate", [1e-7, 0.02])
def test_a_best_rate_at_the_end_of_the_list_is_sought_beyond_it(trained, rate):
    """From far below what is useful and from far above, towards it."""
    data, task = trained
    statistics = gradient_statistics(task, short(data, "train", 20, 30))
    trials = tune_dynamic_evaluation(
        task, lambda: short(data, "val", 1, 20), statistics, rates=[rate / 2, rate], decays=[]
    )
    best = trials[0]["lr"]
    assert best > rate if rate < 1e-5 else best < rate / 2
    assert trials[0]["loss"] == min(one["loss"] for one in trials if math.isfinite(one["perplexity"]))


def test_no_rate_is_tried_twice(monkeypatch):
    for best in (1, 2, 4, 8, 16, 64):
        tried = []

        def scored(task, windows, statistics, *, lr, decay, epsilon, best=best, tried=tried):
            tried.append((lr, decay))
            return {"loss": abs(math.log2(lr / best)), "perplexity": 1.0}

        monkeypatch.setattr(module, "dynamic_evaluation", scored)
        trials = tune_dynamic_evaluation(None, list, None, rates=(1, 2, 4, 8, 16))
        assert trials[0]["lr"] == best and len(set(tried)) == len(tried) == len(trials)


def test_without_training_text_there_are_no_statistics(trained):
    _, task = trained
    with pytest.raises(UserError, match="too short"):
        gradient_statistics(task, [])
