"""Thousands of steps under a changing batch shape: neither memory nor open files grow."""

import pytest

from support.torture import Moment, start
from test_resume import SENTIMENT, language


@pytest.mark.slow
@pytest.mark.parametrize(("family", "warm", "steps"), [("sentiment", 200, 2000), ("language", 2000, 4000)])
def test_a_soak(tmp_path, family, warm, steps):
    """The first `warm` steps are left out: the allocator meets new shapes until then, in language training longest."""
    words = [*SENTIMENT, "data.max_tokens=400"] if family == "sentiment" else language(tmp_path)
    words += ["trainer.max_epochs=-1", f"trainer.max_steps={steps}", "callbacks.last.every_steps=100"]
    words += ["trainer.log_every_n_steps=10", "callbacks.early_stopping.patience=null"]
    ended = start(tmp_path / "run", words, moment=Moment("soak", 0), limit=1800)
    assert ended.codes == [0], ended.said
    assert ended.hit is not None
    seen = ended.hit["seen"]
    assert seen[-1][0] >= steps - 20
    early, late = next(entry for entry in seen if entry[0] >= warm), seen[-10:]
    growth = max(pages for _, pages, _ in late) / early[1] - 1
    print(
        f"{family}: {early[1] / 256:.0f} MiB at step {warm}, {growth:+.2%} at the end; files {early[2]}, {late[-1][2]}"
    )
    assert growth < 0.02
    assert max(files for _, _, files in late) <= early[2]
