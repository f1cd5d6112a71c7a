"""The loop of a sweep: hand jobs to an executor while it has room, and take in what ended."""

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recur.runs.journal import Journal
from recur.runs.metrics import metric
from recur.sweeps.job import Job


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: `done`, `pruned`, `failed` or `stopped`.
        value: its metric, None where it has none.
        record: its `metrics.json`.
        seconds: it took in this sitting.
        reason: of a failure, in one line.
    """

    state: str
    value: float | None = None
    record: dict[str, Any] | None = None
    seconds: float = 0.0
    reason: str = ""


class Executor(Protocol):
    """Where jobs run."""

    @property
    def capacity(self) -> int:
        """Jobs at a time."""

    @property
    def title(self) -> str:
        """The place, in words."""

    def room(self) -> bool:
        """Whether another job may be started now."""

    def start(self, job: Job) -> str:
        """Start a job; return where."""

    def finished(self) -> Sequence[tuple[Job, int]]:
        """Jobs that ended since the last call, with exit codes."""

    def wait(self, seconds: float) -> None:
        """Come back as soon as a job may have ended, and after so long at the latest."""

    def stop(self) -> None:
        """End what runs."""

    def close(self) -> None:
        """Let go of the place."""


class Source(Protocol):
    """Where jobs come from."""

    total: int

    def take(self) -> Job | None:
        """The next job, None when there is none now."""

    def put(self, job: Job, outcome: Outcome) -> None:
        """Hear how a job ended."""


class Listed:
    """Jobs known beforehand, in order."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = deque(jobs)
        self.total = len(jobs)

    def take(self) -> Job | None:
        """The next one."""
        return self._waiting.popleft() if self._waiting else None

    def put(self, job: Job, outcome: Outcome) -> None:
        """Nothing depends on it."""


class Display(Protocol):
    """Who is told."""

    def started(self, job: Job, place: str) -> None:
        """A job began."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job ended."""

    def tick(self) -> None:
        """Time passed."""


def judge(job: Job, code: int, seconds: float) -> Outcome:
    """How a job with this exit code ended; what counts is what it wrote."""
    record = job.record()
    if code == 0 and record is not None:
        value = metric(record, job.monitor) if job.monitor else None
        if job.monitor and value is None and not record.get("pruned"):
            return Outcome("failed", None, record, seconds, f"it wrote no {job.monitor} into metrics.json")
        return Outcome("pruned" if record.get("pruned") else "done", value, record, seconds)
    reason = job.last_words()
    how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
    return Outcome("failed", None, None, seconds, f"{how}: {reason}" if reason else how)


def run_jobs(
    source: Source, executor: Executor, journal: Journal, display: Display, fail_fast: bool = False
) -> dict[int, Outcome]:
    """Run every job of a source.

    A job that is already complete is not run again. Ctrl-C, and with `fail_fast` the first failure, stops what runs and
    leaves a sweep that can be resumed.

    Returns:
        the outcomes by job number.
    """
    outcomes: dict[int, Outcome] = {}
    running: dict[int, float] = {}

    def end(job: Job, outcome: Outcome, told: bool = True) -> None:
        outcomes[job.number] = outcome
        if told:
            fields = {"value": outcome.value, "seconds": round(outcome.seconds, 2), "reason": outcome.reason}
            journal.add("end", job=job.number, state=outcome.state, **fields)
        source.put(job, outcome)
        display.ended(job, outcome)

    under_way: dict[int, Job] = {}
    try:
        while True:
            while executor.room():
                job = source.take()
                if job is None:
                    if not under_way:
                        return outcomes
                    break
                if job.record() is not None:
                    end(job, judge(job, 0, 0.0), told=False)
                    continue
                place = executor.start(job)
                where = os.path.relpath(job.folder, journal.path.parent)
                journal.add("start", job=job.number, overrides=list(job.overrides), folder=where, place=place)
                running[job.number], under_way[job.number] = time.monotonic(), job
                display.started(job, place)
            display.tick()
            executor.wait(0.5)
            for job, code in executor.finished():
                del under_way[job.number]
                outcome = judge(job, code, time.monotonic() - running.pop(job.number))
                end(job, outcome)
                if outcome.state == "failed" and fail_fast:
                    raise _FailedFast
    except (KeyboardInterrupt, _FailedFast) as stop:
        executor.stop()
        for job in under_way.values():
            seconds = time.monotonic() - running[job.number]
            complete = job.record() is not None  # it was quicker
            end(job, judge(job, 0, seconds) if complete else Outcome("stopped", seconds=seconds))
        if isinstance(stop, KeyboardInterrupt):
            raise
        return outcomes
    except BaseException:  # the disk is full, a cluster is gone, ...: nothing may run on unseen
        executor.stop()
        raise


class _FailedFast(Exception):  # noqa: N818
    """Leaves the loop."""
