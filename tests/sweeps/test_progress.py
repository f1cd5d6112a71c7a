"""What a sweep shows while it runs."""

import json

import pytest

from recur.runs import marks
from recur.sweeps.job import Job, SweepId
from recur.sweeps.progress import SweepProgress
from recur.sweeps.runner import Outcome


def job(folder, number):
    return Job(number, (f"lr={number}", "same=1"), folder / str(number), SweepId(folder, "0" * 32))


def test_a_resumed_sweep_counts_what_was_complete(tmp_path, capsys):
    progress = SweepProgress(6, 2, "val/accuracy", "max", ("same=1",))
    with progress:
        progress.resumed([(job(tmp_path, n), Outcome("done", value, {}, 10.0)) for n, value in ((0, 0.43), (4, 0.58))])
        progress.started(job(tmp_path, 1), "cpu 0")
        progress.ended(job(tmp_path, 1), Outcome("done", 0.5, {}, 20.0))
    first, second, third = capsys.readouterr().out.splitlines()
    assert "2 of 6 jobs were complete before (2/6, best 58.00 % by job 4" in first
    assert second.endswith("job 1 on cpu 0: lr=1")
    assert "job 1 done in 20 s, val/accuracy 50.00 % (3/6, best 58.00 % by job 4" in third


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_value_that_is_not_finite_is_never_the_best(tmp_path, capsys, value, mode):
    progress = SweepProgress(2, 1, "val/accuracy", mode)
    for number, one in enumerate((value, 0.5)):
        progress.started(job(tmp_path, number), "cpu 0")
        progress.ended(job(tmp_path, number), Outcome("done", one, {}, 1.0))
    lines = [line for line in capsys.readouterr().out.splitlines() if "done in" in line]
    assert "best" not in lines[0]
    assert "best 50.00 % by job 1" in lines[1]


def test_a_live_table_shows_running_jobs_with_their_last_validation(tmp_path):
    progress = SweepProgress(3, 2, "val/loss", "min")
    running = job(tmp_path, 0)
    running.folder.mkdir()
    marks.write_mark(running.folder, running.mark)
    entry = {"step": 1, "epoch": 1, "done": 0.5, "seconds": 1, "metrics": {"val/loss": 0.25}}
    (running.folder / "history.jsonl").write_text(json.dumps(entry) + "\n")
    from rich.console import Console

    progress._console = Console(width=120, height=20)
    progress.started(running, "cpu 0")
    with progress._console.capture() as shown:
        progress._console.print(progress._table())
    assert "0.2500" in shown.get()
    assert "2 waiting" in shown.get()


def test_the_time_left_of_a_job_that_goes_on_is_by_its_own_clock(tmp_path, monkeypatch):
    """Each process counts its seconds from 0, and what the former one did is not this one's speed."""
    from recur.sweeps import progress as module

    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown, running = SweepProgress(2, 1, "val/loss", "min"), job(tmp_path, 0)
    running.folder.mkdir()
    marks.write_mark(running.folder, running.mark)
    shown.started(running, "cpu 0")
    row = shown._rows[0]

    def left(after, *entries):
        numbered = enumerate(entries, start=1)
        lines = [{"step": n, "epoch": n, "done": done, "seconds": s, "metrics": {}} for n, (done, s) in numbered]
        (running.folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        now[0] = row.began + after
        shown._watched.clear()
        return shown._job_left(row)

    former = [(0.1, 100), (0.5, 500)]
    assert left(5, *former) is None
    assert left(101, *former, (0.6, 100)) is None
    assert left(201, *former, (0.6, 100), (0.7, 200)) == pytest.approx(299)
    assert left(500, *former) == pytest.approx(500)  # of a job that has not been stopped
