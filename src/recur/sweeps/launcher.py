"""The base of this package's launchers: check a whole sweep, run it, write its leaderboard."""

import contextlib
import math
import os
import shlex
import signal
import sys
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from recur.cli import QUEUE, TRUST, handling, tensorboard
from recur.config.compose import group_options, recorded_arguments, repeats_a_recorded_command, typed_words
from recur.errors import UserError
from recur.runs import journal, marks, trust
from recur.runs.files import check_links, write_atomic
from recur.runs.journal import Journal
from recur.runs.metrics import check_metric, family_of
from recur.runs.requeue import keep_place
from recur.sweeps import snapshot as snapshots
from recur.sweeps.checks import ConfigChecks, check_queue
from recur.sweeps.commands import (
    command_module,
    config_dirs,
    config_flags,
    inherited_overrides,
    resume_command,
    words_to_retype,
)
from recur.sweeps.job import Job, Needs, SweepId, needs_of
from recur.sweeps.locks import HeldError, Lock
from recur.sweeps.progress import SweepProgress
from recur.sweeps.runner import Executor, Listed, Outcome, Source, WithCode, run_jobs
from recur.sweeps.signals import Heard, queue_again
from recur.sweeps.snapshot import Code
from recur.sweeps.space import check_count, difference

_MANY = 100  # jobs, whose checks take long enough to be mentioned
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # for jobs that nobody typed


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked.

    Attributes:
        search: how settings are chosen, in words that a resumed sweep must repeat.
        space: `Space.as_record()`.
        total: number of jobs.
        monitor: metric by which jobs are compared.
        mode: `max` or `min`.
        constant: override texts common to all jobs.
        objectives: of a search with several; metric name to mode.
    """

    search: str
    space: Mapping[str, Any]
    total: int
    monitor: str
    mode: str
    constant: tuple[str, ...] = ()
    objectives: Mapping[str, str] | None = None

    def header(self, key: str) -> dict[str, Any]:
        """The first line of the journal of the sweep with this key."""
        return {
            "format": journal.FORMAT,
            "id": key,
            "search": self.search,
            "space": dict(self.space),
            "jobs": self.total,
            "monitor": self.monitor,
            "mode": self.mode,
            "objectives": self.compared(),
            "command": shlex.join(["python", "-m", command_module(), *sys.argv[1:]]),
            "argv": sys.argv[1:],
            "working_folder": os.getcwd(),
        }

    def compared(self) -> dict[str, str]:
        """The metrics by which jobs are compared, with their modes."""
        return dict(self.objectives or {self.monitor: self.mode})


class FreshProcessLauncher(Launcher):
    """Runs every job as a process of its own, in run mode.

    Args:
        fail_fast: stop the sweep at the first job that fails.
        grace_seconds: time a stopped job has to end by itself.
        snapshot: whether jobs run the code as it stood when the sweep began (`recur.sweeps.snapshot`).

    Raises:
        UserError: a value of another kind.
    """

    remote = False  # whether jobs run on machines that may have what this one lacks

    def __init__(self, fail_fast: bool, grace_seconds: float, snapshot: bool = True) -> None:
        for name, value in (("fail_fast", fail_fast), ("snapshot", snapshot)):
            if not isinstance(value, bool):
                raise UserError(f"hydra.launcher.{name}", value, "must be true or false")
        if type(grace_seconds) not in (int, float) or not 0 <= grace_seconds < math.inf:
            raise UserError("hydra.launcher.grace_seconds", grace_seconds, "must be a finite number of at least 0")
        self.fail_fast, self.grace, self.snapshot = fail_fast, grace_seconds, snapshot
        self.config: Any = None
        self.context: Any = None
        self._checks = ConfigChecks(self.remote)
        self._sweep: SweepId | None = None
        self._begun = False
        self._code: Code | None = None
        self._retyped = False  # whether a job has settings that no recorded command may set

    @abstractmethod
    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """Where the jobs will run.

        Raises:
            UserError: the place cannot serve these needs.
        """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the context and config that Hydra passes."""
        setup_globals()
        self.config, self.context = config, hydra_context
        HydraConfig.instance().set_config(config)

    @property
    def folder(self) -> Path:
        """The sweep's folder; `resume=` names it where there is one."""
        again = self.config.get("resume")
        return Path(os.path.expanduser(str(again or self.config.hydra.sweep.dir)))

    @property
    def resuming(self) -> bool:
        """Whether an earlier sweep is to be completed."""
        return bool(self.config.get("resume"))

    @property
    def sweep(self) -> SweepId:
        """The sweep's folder and key.

        Raises:
            UserError: the sweep to be resumed has no key.
        """
        if self._sweep is None:
            key = uuid.uuid4().hex
            if self.resuming:
                key = journal.read(self.folder)[0].get("id", "")
                if not marks.is_key(key):
                    raise UserError(
                        f"resume={self.folder}", rule="is a sweep of an earlier version: its journal names no id"
                    )
            self._sweep = SweepId(self.folder, key)
        return self._sweep

    def command_again(self) -> str:
        """What completes the sweep: all of its command, where `resume=` would refuse to repeat a recorded one."""
        whole = [] if repeats_a_recorded_command() else recorded_arguments(str(self.folder))
        try:
            trust.check_arguments(whole, str(self.folder), group_options())
        except UserError:
            return resume_command(self.folder, whole)
        return resume_command(self.folder, whole) if whole and self._retyped else resume_command(self.folder)

    def known_jobs(self) -> dict[int, tuple[str, ...]]:
        """Overrides of the jobs that were begun before, by number: from the journal and from the jobs' folders."""
        if not self.resuming:
            return {}
        marked = marks.marked_folders(self.folder, self.sweep.key)
        known = {number: mark.overrides for number, (_, mark) in marked.items()}
        for event in journal.read(self.folder):
            if event["event"] == "start":
                known.setdefault(event["job"], tuple(map(str, event["overrides"])))
        return known

    def recorded_space(self) -> Mapping[str, Any]:
        """What a sweep that is resumed searched when it began; empty for one that begins."""
        space = journal.read(self.folder)[0].get("space") if self.resuming else None
        return space if isinstance(space, dict) else {}

    def compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The config this job will see."""
        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
            cfg.hydra.runtime.output_dir = str(self.folder / str(number))
        return cfg

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """A job, composed; its config is kept, to be checked with the others before the first one starts.

        Raises:
            UserError: its config lacks a value, names a metric that no run writes, or is of no run.
        """
        cfg = self.compose(number, overrides)
        HydraConfig.instance().set_config(cfg)
        try:
            subdir = str(OmegaConf.select(cfg, "hydra.sweep.subdir"))
            missing = [key for key in OmegaConf.missing_keys(cfg) if not key.startswith("hydra")]
            if missing:
                raise UserError(missing[0], rule="has no value", remedy=f"set {missing[0]}=...")
            monitor = str(cfg.get("monitor", ""))
            family = family_of(str(OmegaConf.select(cfg, "model._target_", default="")))
            check_metric(monitor, family, key="monitor")
            if cfg.get("find_lr"):
                rule = "prints a learning rate and leaves no run to compare"
                raise UserError("find_lr", True, rule, "leave out -m: python -m recur.train OVERRIDES find_lr=true")
            if monitor.startswith("train/"):
                rule = "must be measured on val: jobs are compared by what is scored once they are trained"
                raise UserError("monitor", monitor, rule, "set monitor=val/loss mode=min")
            needs = needs_of(cfg)
            self._checks.add(cfg)
            foreign = repeats_a_recorded_command()
            if foreign:
                self._check_foreign(number, cfg)
            trusted = {TRUST: os.environ[TRUST]} if os.environ.get(TRUST) else {}  # of Ray's workers it is not the own
            environment, retyped = ({**_OFFLINE, **trusted}, ()) if foreign else (trusted, words_to_retype(cfg))
            self._retyped |= bool(retyped)
        finally:
            HydraConfig.instance().set_config(self.config)
        flags = (*config_flags(self.config), *inherited_overrides(self.config))
        folder = self.folder / subdir
        own = (needs, monitor, command_module(), flags, environment, retyped)
        return Job(number, tuple(overrides), folder, self.sweep, *own)

    def _check_foreign(self, number: int, cfg: DictConfig) -> None:
        """Check a job's config as that of a run of unknown origin: it was not typed in this command."""
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        for resolve in (False, True):
            content: Any = OmegaConf.to_container(own, resolve=resolve)
            try:
                trust.check_config(content, (), f"job {number} of {self.folder}", self.folder)
            except UserError as error:
                remedy = f"if you want that, type the sweep's whole command again, with resume={self.folder}"
                raise UserError(error.key, error.value, error.rule, remedy) from None

    def jobs(self, rows: Sequence[Sequence[str]], first: int = 0) -> list[Job]:
        """Jobs for these settings; a resumed sweep gives every setting its former number.

        Raises:
            UserError: two jobs would share a folder.
        """
        check_count(len(rows))
        if len(rows) > _MANY:
            print(f"checks     {len(rows)} jobs before the first one starts", flush=True)
        known = self.known_jobs()
        former = _former_numbers(known, rows)
        free = (number for number in range(first, first + len(rows) + len(known) + 1) if number not in known)
        numbers = [former[at] if at in former else next(free) for at in range(len(rows))]
        # A job keeps its recorded words, which stand in the mark of its folder, whatever their order is now.
        made = [self.job(number, known.get(number, row)) for number, row in zip(numbers, rows, strict=True)]
        folders = {job.folder for job in made}
        if len(folders) < len(made) or any(parent in folders for folder in folders for parent in folder.parents):
            raise UserError(
                "hydra.sweep.subdir", rule="gives several jobs one folder", remedy="leave it at ${hydra.job.num}"
            )
        return made

    def run(
        self, source: Source, plan: Plan, executor: Executor, check_folders: Callable[[], None]
    ) -> dict[int, Outcome]:
        """Run a checked sweep to its end and write its leaderboard.

        Args:
            source: of the jobs.
            plan: what the sweep is.
            executor: where jobs run; closed in the end.
            check_folders: raises where a job's folder is not its own.

        Raises:
            UserError: the folder holds another sweep, or this one while it still runs; a class that a config names
                takes no such key or value. Nothing has been written then.
            KeyboardInterrupt: stopped; the sweep can be resumed.
        """
        from recur.leaderboard import page

        folder = self.folder
        if self.resuming:
            journal.read(folder)  # before anything is written there
        with contextlib.ExitStack() as held:
            held.enter_context(contextlib.closing(executor))
            self._compare(plan)
            check_folders()
            page.check_out(folder / "results", "name another folder with hydra.sweep.dir=..., or move that file away")
            self._checks.run()
            if self.resuming and self.snapshot:
                self._code = snapshots.of_sweep(journal.read(folder)[0].get("code"), folder, config_dirs(self.config))
            with _writable(folder, self.resuming):
                held.enter_context(_exclusively(folder, self.resuming))
                entries = held.enter_context(contextlib.closing(self._begin(plan)))
            progress = SweepProgress(plan.total, executor.capacity, plan.monitor, plan.mode, plan.constant)
            progress.say(f"sweep      {folder}")
            if self._code is not None:
                progress.say(f"code       {self._code.commit or 'installed'}, as it stood when the sweep began")
            progress.say(f"jobs       {plan.total}, {plan.search}; {executor.title}")
            heard = Heard()
            with contextlib.suppress(OSError):  # for a job that SLURM starts again without having warned it
                keep_place(typed_words(), folder)
            with progress, handling(heard, signal.SIGTERM, signal.SIGHUP, *QUEUE):  # as Ctrl-C
                try:
                    jobs = WithCode(source, self._code)
                    outcomes = run_jobs(jobs, executor, entries, progress, self.fail_fast)
                except KeyboardInterrupt:
                    asked = queue_again(folder) if heard.number in QUEUE else None
                    progress.say(f"stopped; go on with: {self.command_again()}" + (f" ({asked})" if asked else ""))
                    raise
            self._write_leaderboard(folder, progress)
        return outcomes

    def _begin(self, plan: Plan) -> Journal:
        self._compare(plan)  # again, now that the folder is locked
        first, self._begun = not self._begun, True
        if self.resuming or not first:
            entries = Journal(self.folder)
            if first and not repeats_a_recorded_command():  # it may ask for more jobs: `resume=` alone repeats it now
                argv = [word for word in sys.argv[1:] if not word.startswith("resume=")]
                command = plan.header(self.sweep.key)["command"]
                entries.add("extended", jobs=plan.total, argv=argv, command=command)
            return entries
        if self.snapshot:
            self._code = snapshots.take(self.folder, config_dirs(self.config))
        code = None if self._code is None else self._code.summary()
        entries = Journal.begin(self.folder, **plan.header(self.sweep.key), code=code)
        write_atomic(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
        return entries

    def _compare(self, plan: Plan) -> None:
        """Refuse a folder that holds another sweep."""
        if self.resuming and not self._begun:  # a sweeper may come with batch after batch
            header = _header(self.folder)
            changed = [difference(header["space"], plan.space)]
            if header["search"] != plan.search:
                changed.insert(0, f"search: then {header['search']}, now {plan.search}")
            if list(header["objectives"].items()) != list(plan.compared().items()):  # a study counts on their order
                changed.append(f"objectives: then {header['objectives']}, now {plan.compared()}")
            if any(changed):
                changes = "; ".join(filter(None, changed))
                raise UserError("", rule=f"cannot resume {self.folder}, this is another sweep", remedy=changes)
        elif (self.folder / journal.NAME).is_file() and not self._begun:
            raise UserError(
                str(self.folder),
                rule="is a sweep already",
                remedy=f"go on with resume={self.folder}, or name another folder",
            )
        elif not self._begun and (self.folder / ".hydra" / "config.yaml").is_file():
            raise UserError("hydra.sweep.dir", str(self.folder), "is the folder of a run", "name another folder")

    def _write_leaderboard(self, folder: Path, progress: SweepProgress) -> None:
        from recur.leaderboard import page
        from recur.leaderboard.table import Leaderboard
        from recur.leaderboard.text import as_text

        try:
            leaderboard = Leaderboard.of([folder])
        except UserError as error:
            progress.say(str(error))
            return
        progress.say(as_text(leaderboard, 10))
        try:
            page.check_out(folder / "results")
            written = page.write(leaderboard, folder / "results")
        except UserError as error:  # the runs are whole
            progress.say(str(error))
            return
        progress.say(f"results    {written}")
        if any(folder.glob("*/events.out.tfevents.*")):
            progress.say(f"compare    {tensorboard(folder)}")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch for a sweeper of another package."""
        rows = [[text for text in row if not text.startswith("resume=")] for row in job_overrides]
        made = self.jobs(rows, initial_job_idx)
        plan = self.plan_of_list("a list", made, {"fixed": {}, "varied": {"jobs": [" ".join(row) for row in rows]}})
        outcomes = self.run_list(made, plan)
        return [_returned(job, outcomes.get(job.number)) for job in made]

    def run_list(self, made: Sequence[Job], plan: Plan) -> dict[int, Outcome]:
        """Run jobs known beforehand."""

        def check_folders() -> None:
            if self.resuming:
                _compare_folders(self.folder, made)
            for job in made:
                job.check_folder()

        return self.run(Listed(made), plan, self.executor([job.needs for job in made], len(made)), check_folders)

    def plan_of_list(self, search: str, made: Sequence[Job], space: Mapping[str, Any]) -> Plan:
        """The plan of a sweep whose jobs are known beforehand.

        Raises:
            UserError: the jobs are not compared by one metric.
        """
        monitors = dict.fromkeys(job.monitor for job in made)
        if len(monitors) > 1:
            names = ", ".join(monitors)
            raise UserError("", rule=f"the jobs of a sweep are compared by one metric, these have {names}")
        first = self.compose(0, made[0].overrides)
        common = set(made[0].overrides).intersection(*[job.overrides for job in made]) if len(made) > 1 else set()
        return Plan(
            search, space, len(made), next(iter(monitors)), str(first.get("mode", "max")), tuple(sorted(common))
        )

    def check_new_folders(self, job: Job, count: int) -> None:
        """Refuse folders where the jobs 0 to `count` - 1 of a search would run, and which they did not make.

        Raises:
            UserError: there is such a folder.
        """
        known = self.known_jobs()
        if job.folder.name != str(job.number):
            raise UserError(
                "hydra.sweep.subdir", rule="cannot be set where settings are chosen while the sweep runs",
                remedy="leave it at ${hydra.job.num}",
            )  # fmt: skip
        for number in range(count):
            folder = job.folder.with_name(str(number))
            replace(job, number=number, overrides=known.get(number, ()), folder=folder).check_folder()


def _former_numbers(known: Mapping[int, tuple[str, ...]], rows: Sequence[Sequence[str]]) -> dict[int, int]:
    """The former number of each row of settings that had one, by its place among the rows.

    Settings are the same in whatever order they were typed. Rows that repeat the very words of a job come first: two
    rows may differ in nothing but the order of their words.
    """
    numbers: dict[int, int] = {}
    for settings in (tuple, frozenset):
        left: dict[Any, list[int]] = {}
        for number in sorted(known.keys() - numbers.values(), reverse=True):
            left.setdefault(settings(known[number]), []).append(number)
        for at, row in enumerate(rows):
            if at not in numbers and (same := left.get(settings(row))):
                numbers[at] = same.pop()
    return numbers


def _compare_folders(folder: Path, made: Sequence[Job]) -> None:
    """Refuse to run jobs of a resumed sweep in other folders than before, where they would begin anew.

    Raises:
        UserError: names the first such job.
    """
    begun = {event["job"]: event.get("folder") for event in journal.read(folder) if event["event"] == "start"}
    for job in made:
        then, now = begun.get(job.number), os.path.relpath(job.folder, folder)
        if isinstance(then, str) and os.path.normpath(then) != now:
            rule = f"must stay as it was: job {job.number} ran in {then}"
            raise UserError("hydra.sweep.subdir", now, rule, "leave it out, or begin another sweep")


def _header(folder: Path) -> dict[str, Any]:
    """The first line of a sweep's journal, with what a sweep is compared by before it is resumed.

    Raises:
        UserError: it lacks a part of that.
    """
    header = journal.read(folder)[0]
    space = header.get("space")
    parts = ("fixed", "varied")
    if not isinstance(space, dict) or not all(isinstance(space.get(part), dict) for part in parts):
        lacks = "space"
    else:
        whole = {
            "search": isinstance(header.get("search"), str),
            "objectives": isinstance(header.get("objectives"), dict),
        }
        lacks = next((key for key, there in whole.items() if not there), "")
    if lacks:
        rule = f"is damaged: its first line does not say the {lacks} of the sweep, which a resumed one must repeat"
        raise UserError(str(folder / journal.NAME), rule=rule)
    return header


def _returned(job: Job, outcome: Outcome | None) -> JobReturn:
    result = JobReturn(overrides=list(job.overrides), working_dir=str(job.folder))
    if outcome is not None and outcome.state in ("done", "pruned"):
        result.status, result.return_value = JobStatus.COMPLETED, outcome.value
    else:
        reason = outcome.reason if outcome else "it was not started"
        error = RuntimeError(f"job {job.number}: {reason}; log {job.log}")
        result.status, result.return_value = JobStatus.FAILED, error
    return result


@contextlib.contextmanager
def _writable(folder: Path, resuming: bool) -> Iterator[None]:
    """Say which setting names the folder where it cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "mend that" if resuming else "name another folder with hydra.sweep.dir=..."
        raise UserError(str(folder), rule=f"cannot be written ({reason})", remedy=remedy) from error


@contextlib.contextmanager
def _exclusively(folder: Path, resuming: bool) -> Iterator[None]:
    """Hold the sweep's folder; wait until no process of an earlier start of it is left.

    Raises:
        UserError: another process holds it, or a job from before does not end or waits in a cluster's queue.
    """
    locks = folder / ".locks"
    check_links(folder)  # before anything in it is opened
    locks.mkdir(parents=True, exist_ok=True)
    held = Lock(locks / "sweep", timeout=0)
    try:
        held.acquire()
    except HeldError:
        raise UserError(str(folder), rule="is being run by another process") from None
    try:
        if resuming:
            check_queue(folder)
        for path in sorted(locks.iterdir()):
            if path.name != "sweep":
                try:
                    with Lock(path, timeout=30):
                        pass
                except HeldError:
                    raise UserError(
                        f"job {path.stem} of {folder}", rule="still runs from before", remedy="end it first"
                    ) from None
        yield
    finally:
        held.release()


def leave(outcomes: Mapping[int, Outcome], total: int, command: Callable[[], str], replaced: bool = False) -> None:
    """End the process with exit code 1 where a job failed or was never run.

    Args:
        outcomes: by job number.
        total: number of jobs.
        command: gives the one that completes the sweep.
        replaced: whether a resumed sweep tries others in the place of jobs that failed.

    Raises:
        SystemExit: 1 where a job failed or was never run.
    """
    failed = [number for number, outcome in sorted(outcomes.items()) if outcome.state == "failed"]
    if failed or any(outcome.state == "stopped" for outcome in outcomes.values()):
        named = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
        # A job that wrote its result is complete, even where that holds no number to compare.
        complete = all(outcome.record is not None for outcome in outcomes.values())
        again = f"{'others are tried in their place' if replaced else 'run them again'} with: {command()}"
        if complete and not replaced:
            again = "they ran to their end, so a resumed sweep would not run them again"
        print(f"recur: {len(failed)} of {total} jobs failed ({named}); {again}", file=sys.stderr)
        raise SystemExit(1)
