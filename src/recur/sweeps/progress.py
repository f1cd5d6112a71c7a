"""What a sweep shows while it runs: a live table on a terminal, plain lines without one."""

import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recur.cli import going_on_unread
from recur.render import seconds_in_words
from recur.runs import journal
from recur.runs.metrics import format_value
from recur.sweeps.job import Job
from recur.sweeps.runner import Outcome

COLOURS = {"running": "cyan", "done": "green", "pruned": "yellow", "failed": "bold red", "stopped": "yellow"}


@dataclass
class _Row:
    job: Job
    state: str
    place: str = ""
    began: float = 0.0
    seconds: float = 0.0
    value: float | None = None


def _of_this_process(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The validations since a run went on: the clock of each process begins anew."""
    falls = [at for at in range(1, len(entries)) if entries[at]["seconds"] < entries[at - 1]["seconds"]]
    return entries[falls[-1] if falls else 0 :]


class SweepProgress:
    """Shows a sweep's events as they come.

    Args:
        total: number of jobs.
        slots: jobs that run at a time.
        monitor: name of the metric.
        mode: `max` or `min`.
        constant: overrides that all jobs share, left out of their names.
    """

    def __init__(self, total: int, slots: int, monitor: str, mode: str, constant: tuple[str, ...] = ()) -> None:
        self._total, self._slots, self._monitor, self._mode = total, max(1, slots), monitor, mode
        self._constant = set(constant)
        self._rows: dict[int, _Row] = {}
        self._best: tuple[float, int] | None = None
        self._ended = 0
        self._watched: dict[int, tuple[float, list[dict[str, Any]]]] = {}
        self._live: Any = None
        self._console: Any = None

    def __enter__(self) -> "SweepProgress":
        """Open the live table where there is a terminal."""
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            self._console = Console()
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the live table; its last state stays on the terminal."""
        if self._live is not None:
            self._live.__exit__(*error)

    def name(self, job: Job) -> str:
        """The overrides that set this job apart from the others."""
        return " ".join(text for text in job.overrides if text not in self._constant) or "no overrides"

    def say(self, line: str) -> None:
        """Print a line, above the live table where there is one."""
        with going_on_unread():
            if self._console is not None:
                self._console.print(line, markup=False, highlight=False)
            else:
                print(line, flush=True)

    def resumed(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
        """Count the jobs that were complete before."""
        for job, outcome in ended:
            self._take_in(job, outcome)
        self.say(f"{_clock()} {len(ended)} of {self._total} jobs were complete before {self._count()}")

    def started(self, job: Job, place: str) -> None:
        """A job began."""
        self._rows[job.number] = _Row(job, "running", place, time.monotonic())
        if self._live is None:
            self.say(f"{_clock()} job {job.number} on {place}: {self.name(job)}")

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job ended; a failure is reported at once, with the way to its log."""
        row = self._take_in(job, outcome)
        if outcome.state == "failed":
            self.say(f"{_clock()} job {job.number} FAILED, {outcome.reason}; log {job.log}")
        elif self._live is None and row.place:
            value = (
                f", {self._monitor} {format_value(self._monitor, outcome.value)}" if outcome.value is not None else ""
            )
            took = seconds_in_words(outcome.seconds)
            self.say(f"{_clock()} job {job.number} {outcome.state} in {took}{value} {self._count()}")

    def _take_in(self, job: Job, outcome: Outcome) -> _Row:
        row = self._rows.setdefault(job.number, _Row(job, "waiting"))
        row.state, row.seconds, row.value = outcome.state, outcome.seconds, outcome.value
        self._ended += outcome.state != "stopped"
        if outcome.state == "done" and outcome.value is not None and math.isfinite(outcome.value):
            candidate = (outcome.value, job.number)
            ahead = self._best is None or (candidate > self._best if self._mode == "max" else candidate < self._best)
            self._best = candidate if ahead else self._best
        return row

    def _count(self) -> str:
        best = f", best {format_value(self._monitor, self._best[0])} by job {self._best[1]}" if self._best else ""
        left = self._left()
        return f"({self._ended}/{self._total}{best}{f', {seconds_in_words(left)} left' if left and left >= 1 else ''})"

    def _look(self, row: _Row) -> list[dict[str, Any]]:
        """The validations of a running job; its file is read once a second at most."""
        now = time.monotonic()
        seen = self._watched.get(row.job.number)
        if seen is None or now - seen[0] > 1:
            self._watched[row.job.number] = seen = (now, journal.read_validations(row.job.folder))
        return seen[1]

    def _job_left(self, row: _Row) -> float | None:
        every = self._look(row)
        entries = _of_this_process(every)
        if not entries or not entries[-1]["done"]:
            return None
        gone_on = len(entries) < len(every)  # what was done before is no measure of this process's speed
        if (gone_on and len(entries) < 2) or time.monotonic() - row.began < entries[-1]["seconds"]:
            return None
        first = entries[0]
        done, spent = entries[-1]["done"], entries[-1]["seconds"]
        if len(entries) > 1 and spent > first["seconds"] and done > first["done"]:  # without the time of starting
            rate = (done - first["done"]) / (spent - first["seconds"])
        else:
            rate = done / max(spent, 1e-3)
        return max(0.0, (1 - done) / rate - (time.monotonic() - row.began - spent))

    def _left(self) -> float | None:
        """Seconds until the whole sweep ends, from what ended so far."""
        rows = list(self._rows.values())  # the live table calls this from a thread of its own
        took = [row.seconds for row in rows if row.state in ("done", "pruned") and row.seconds]
        if not took:
            return None
        mean = sum(took) / len(took)
        running = [row for row in rows if row.state == "running"]
        rest = sum(max(0.0, mean - (time.monotonic() - row.began)) for row in running)
        return (rest + mean * max(0, self._total - self._ended - len(running))) / min(self._slots, self._total)

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"{self._count()[1:-1]}", title_justify="left", expand=True, box=None, pad_edge=False)
        for title in ("job", "state", "place", "epoch", self._monitor or "metric", "time left", "setting"):
            table.add_column(title, overflow="ellipsis", no_wrap=True, ratio=1 if title == "setting" else None)
        height = self._console.size.height - 6
        rows = sorted(
            self._rows.values(), key=lambda row: (row.state == "running", row.state == "failed", row.job.number)
        )
        for row in sorted(rows[-max(3, height) :], key=lambda row: row.job.number):
            epoch, value, left = "", row.value, seconds_in_words(row.seconds)
            if row.state == "running":
                entries = self._look(row)
                values = [e["metrics"].get(self._monitor) for e in entries]
                known = [v for v in values if v is not None and math.isfinite(v)]
                value = (max if self._mode == "max" else min)(known) if known else None
                epoch = f"{entries[-1]['epoch']:g}" if entries else ""
                remaining = self._job_left(row)
                left = seconds_in_words(remaining) if remaining is not None else "?"
            elif row.state in ("done", "pruned"):
                left = f"took {left}"
            state = Text(row.state, style=COLOURS.get(row.state, ""))
            table.add_row(
                str(row.job.number),
                state,
                row.place,
                epoch,
                format_value(self._monitor, value),
                left,
                Text(_briefly(self.name(row.job))),
            )
        hidden = len(self._rows) - len(table.rows)
        waiting = self._total - len(self._rows)
        more = [f"{hidden} more"] * bool(hidden) + [f"{waiting} waiting"] * bool(waiting)
        table.caption = ", ".join(more)
        return table


def _briefly(name: str) -> str:
    """The last part of each key is enough in a narrow column."""
    return " ".join(re.sub(r"^[^=]*\.(?=[^.=]+=)", "", word) for word in name.split(" "))


def _clock() -> str:
    return time.strftime("%H:%M:%S")
