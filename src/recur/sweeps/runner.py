"""The loop of a sweep: give jobs to an executor while it has capacity, and record what ended."""

import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recur.runs.journal import Journal
from recur.runs.metrics import metric
from recur.sweeps.job import Job
from recur.sweeps.snapshot import Code


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: `done`, `pruned`, `failed` or `stopped`.
        value: its metric, None where it has none.
        record: its `metrics.json`.
        seconds: it took since it was last started.
        reason: of a failure, in one line.
    """

    state: str
    value: float | None = None
    record: dict[str, Any] | None = None
    seconds: float = 0.0
    reason: str = ""


class FullError(Exception):
    """A place takes no further job until one that it has ends."""


class Executor(Protocol):
    """Where jobs run.

    An implementation starts `job.command()` as a process of its own, by `recur.sweeps.job.start_supervised` or, on
    another machine, `perform`.
    """

    @property
    def capacity(self) -> int:
        """Jobs at a time."""

    @property
    def title(self) -> str:
        """The place, in words."""

    def has_capacity(self) -> bool:
        """Whether another job may be started now."""

    def start(self, job: Job) -> str:
        """Start a job; return where.

        Raises:
            FullError: not now; there is no capacity until another job ends.
        """

    def finished(self) -> Sequence[tuple[Job, int]]:
        """Jobs that ended since the last call, with exit codes."""

    def wait(self, seconds: float) -> None:
        """Return as soon as a job may have ended, and after so many seconds at the latest."""

    def stop(self) -> None:
        """End what runs."""

    def close(self) -> None:
        """Free the place."""


class Source(Protocol):
    """Where jobs come from."""

    total: int

    def completed(self) -> Sequence[Job]:
        """Jobs that were complete before the sweep was resumed; called once, before the first `take`."""

    def take(self) -> Job | None:
        """The next job, None when there is none now."""

    def put(self, job: Job, outcome: Outcome) -> None:
        """Record how a job that was taken ended."""


class Listed:
    """Jobs known beforehand, in order."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = deque(jobs)
        self.total = len(jobs)

    def completed(self) -> list[Job]:
        """Those that have written their result."""
        complete = [job for job in self._waiting if job.record() is not None]
        self._waiting = deque(job for job in self._waiting if job not in complete)
        return complete

    def take(self) -> Job | None:
        """The next one."""
        return self._waiting.popleft() if self._waiting else None

    def put(self, job: Job, outcome: Outcome) -> None:
        """Do nothing: the next jobs do not depend on it."""


class WithCode:
    """The jobs of another source, each with the snapshot that it imports from.

    Args:
        source: of the jobs.
        code: the snapshot; None for the code as it is when a job starts.
    """

    def __init__(self, source: Source, code: Code | None) -> None:
        self._source, self._code = source, code
        self.total = source.total

    def completed(self) -> Sequence[Job]:
        """The source's."""
        return self._source.completed()

    def take(self) -> Job | None:
        """The next one."""
        job = self._source.take()
        if job is not None:
            job.code = self._code
        return job

    def put(self, job: Job, outcome: Outcome) -> None:
        """Pass it to the source."""
        self._source.put(job, outcome)


class Display(Protocol):
    """What shows a sweep while it runs."""

    def resumed(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
        """The sweep goes on; these jobs were complete."""

    def started(self, job: Job, place: str) -> None:
        """A job began."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job ended."""


def judge(job: Job, code: int, seconds: float | None = None) -> Outcome:
    """How a job ended.

    A run writes `metrics.json` last: where it is, the run is complete, whatever became of its process or supervisor.

    Args:
        job: none of its processes runs any more.
        code: its exit code.
        seconds: it took; None to read them from its record.
    """
    record = job.record()
    if record is not None:
        took = metric(record, "wall_seconds") or 0.0 if seconds is None else seconds
        took = took if math.isfinite(took) else 0.0
        names = job.objectives or ((job.monitor,) if job.monitor else ())
        values = [metric(record, name) for name in names]
        finite = [value if value is not None and math.isfinite(value) else None for value in values]
        value = finite[0] if finite else None  # no order has a place for another one
        if record.get("pruned"):
            return Outcome("pruned", value, record, took)
        if None in values:
            lacking = names[values.index(None)]
            return Outcome("failed", None, record, took, f"it wrote no {lacking} into metrics.json")
        if None in finite:
            return Outcome("failed", None, record, took, "the metric is not finite")
        return Outcome("done", value, record, took)
    reason = job.last_line()
    how = f"signal {code - 128 if code > 128 else -code}" if code > 128 or code < 0 else f"exit code {code}"
    return Outcome("failed", None, None, seconds or 0.0, f"{how}: {reason}" if reason else how)


def run_jobs(
    source: Source, executor: Executor, journal: Journal, display: Display, fail_fast: bool = False
) -> dict[int, Outcome]:
    """Run every job of a source.

    A job that is complete already is not run again. Ctrl-C, and with `fail_fast` the first failure, stops what runs and
    leaves a sweep that can be resumed.

    Returns:
        the outcomes by job number.
    """
    before = [(job, judge(job, 0)) for job in source.completed()]
    outcomes = {job.number: outcome for job, outcome in before}
    if before:
        display.resumed(before)
    running: dict[int, tuple[Job, float]] = {}
    kept: Job | None = None  # which its place did not take yet

    def end(job: Job, outcome: Outcome) -> None:
        outcomes[job.number] = outcome
        fields = {"value": outcome.value, "seconds": round(outcome.seconds, 2), "reason": outcome.reason}
        journal.add("end", job=job.number, state=outcome.state, **fields)
        source.put(job, outcome)
        display.ended(job, outcome)

    try:
        while True:
            while executor.has_capacity():
                job, kept = kept or source.take(), None
                if job is None:
                    if not running:
                        return outcomes
                    break
                if job.record() is not None:  # it ended between two polls
                    end(job, judge(job, 0))
                    continue
                try:
                    place = executor.start(job)
                except FullError:
                    kept = job
                    break
                where = os.path.relpath(job.folder, journal.path.parent)
                journal.add("start", job=job.number, overrides=list(job.overrides), folder=where, place=place)
                running[job.number] = (job, time.monotonic())
                display.started(job, place)
            executor.wait(0.5)
            for job, code in executor.finished():
                outcome = judge(job, code, time.monotonic() - running.pop(job.number)[1])
                end(job, outcome)
                if outcome.state == "failed" and fail_fast:
                    raise _FailedFast
    except (KeyboardInterrupt, _FailedFast) as stop:
        executor.stop()
        for job, began in running.values():
            seconds = time.monotonic() - began
            complete = job.record() is not None  # it was quicker
            end(job, judge(job, 0, seconds) if complete else Outcome("stopped", seconds=seconds))
        if isinstance(stop, KeyboardInterrupt):
            raise
        return outcomes
    except BaseException:  # the disk is full, a cluster is gone, ...: no job may go on without a sweep
        executor.stop()
        raise


class _FailedFast(Exception):  # noqa: N818
    """Leaves the loop."""
