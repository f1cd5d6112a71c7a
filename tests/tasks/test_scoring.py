"""A text window by window, by definition."""

import pytest
import torch
from torch.nn import functional as F

from recur.tasks.scoring import each_window_alone
from support.language_models import static


def test_windows_read_alone_forget_what_stands_before_them(trained):
    data, task = trained
    windows = list(data.loader("val"))
    total = tokens = 0.0
    with torch.no_grad():
        for window in windows:
            logits = task.net.logits(task(window, None).features)
            total += float(F.cross_entropy(logits, window.targets, reduction="sum"))
            tokens += len(window.targets)
    alone = each_window_alone(task, windows)["loss"]
    assert alone == pytest.approx(total / tokens, rel=1e-5)
    assert alone > static(task, windows)  # the stories go on across windows
