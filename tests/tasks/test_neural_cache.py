"""The neural cache against its definition."""

import math
from itertools import islice

import pytest
import torch

from recur.data.language import LanguageData
from recur.data.synthetic import SyntheticText
from recur.tasks.neural_cache import neural_cache, tune_neural_cache
from support.language_models import static


def test_the_cache_equals_its_definition(trained):
    data, task = trained
    windows = list(data.loader("test"))
    assert neural_cache(task, windows, weight=0.0)["loss"] == pytest.approx(static(task, windows), rel=1e-6)
    # The plain way: one stream at a time, one token at a time.
    theta, share, size = 0.4, 0.2, 20
    total = tokens = 0
    one = LanguageData(synthetic=SyntheticText(2000, 500, 500), eval_batch_size=1, eval_bptt=500)
    one.prepare_data()
    one.setup()
    (window,) = islice(one.loader("test"), 1)
    with torch.no_grad():
        hidden = task(window)
        p = task.net.logits(hidden.features).softmax(1)
    h, y = hidden.raw.data, window.targets
    for t in range(len(y)):
        past = range(max(0, t - size), t)
        probability = p[t, y[t]]
        if len(past):
            votes = torch.stack([theta * h[t] @ h[i] for i in past]).softmax(0)
            cached = sum(float(v) for v, i in zip(votes, past, strict=True) if y[i] == y[t])
            probability = (1 - share) * probability + share * cached
        total, tokens = total - math.log(probability), tokens + 1
    for parts in (1, 5, 20):  # however the text is cut into windows
        pieces = LanguageData(synthetic=SyntheticText(2000, 500, 500), eval_batch_size=1, eval_bptt=500 // parts)
        pieces.prepare_data()
        pieces.setup()
        loader = islice(pieces.loader("test"), parts)
        found = neural_cache(task, loader, size=size, flatness=theta, weight=share)
        if parts == 1:
            assert found["loss"] == pytest.approx(total / tokens, rel=1e-5)
            whole = found
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    helped = neural_cache(task, [windows[0]] * 10, size=100, flatness=1.0, weight=0.2)
    assert helped["perplexity"] == pytest.approx(math.exp(helped["loss"]))


def test_a_cache_is_tuned_over_every_pair_of_settings(trained):
    data, task = trained
    trials = tune_neural_cache(task, data.loader("val"), size=50, flatnesses=[0.0, 0.3], weights=[0.05, 0.2, 0.4])
    assert len({(one["flatness"], one["weight"]) for one in trials}) == 6
    assert [one["loss"] for one in trials] == sorted(one["loss"] for one in trials)
    for one in (trials[0], trials[-1]):
        settings = {name: one[name] for name in ("size", "flatness", "weight")}
        assert neural_cache(task, data.loader("val"), **settings)["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_a_cache_that_only_harms_gets_no_weight(trained):
    """Tuned with the defaults, a cache is never worse than none."""
    data, task = trained
    best = tune_neural_cache(task, data.loader("val"), size=1)[0]
    without = neural_cache(task, data.loader("val"), size=1, weight=0.0)["loss"]
    assert best["loss"] <= without == pytest.approx(static(task, list(data.loader("val"))), rel=1e-5)


def test_a_token_that_neither_model_nor_cache_expects_costs_what_it_costs(trained):
    """In float32 a probability of less than exp(-103) was 0, and the loss infinite."""
    from recur.tasks.neural_cache import _mixed, _Votes

    votes = _Votes(torch.tensor([150.0, 2.0]), torch.tensor([[0.0, 0.5]]), torch.tensor([False, True]))
    expected = 150.0 - math.log1p(-0.1) + 2.0  # nothing is cached yet at the second
    assert float(_mixed(votes, 0.1)[0]) == pytest.approx(expected, rel=1e-6)
