"""A softmax temperature against logits that are divided in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recur.tasks.temperature import at_temperature, tune_temperature
from support.language_models import static


def test_a_temperature_divides_the_logits_and_the_best_one_is_found(trained):
    data, task = trained
    windows = list(data.loader("val"))
    assert at_temperature(task, windows, 1.0)["loss"] == pytest.approx(static(task, windows), rel=1e-6)
    state, logits, targets = None, [], []
    with torch.no_grad():
        for window in windows:
            hidden = task(window, None if window.first else state)
            state = hidden.state
            logits.append(task.net.logits(hidden.features)[-len(window.targets) :].double())
            targets.append(window.targets)

    def naive(temperature: float) -> float:
        return float(F.cross_entropy(torch.cat(logits) / temperature, torch.cat(targets)))

    for temperature in (0.7, 1.6):
        assert at_temperature(task, windows, temperature)["loss"] == pytest.approx(naive(temperature), rel=1e-5)
    grid = np.exp(np.linspace(np.log(0.5), np.log(2), 500))
    best = min(grid, key=naive)
    assert tune_temperature(task, lambda: windows) == pytest.approx(best, rel=0.01)
