"""What Hydra's launchers and sweepers of this package do: check a sweep whole, then run it, then tell what came out."""

import contextlib
import os
import shlex
import signal
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from recur.config.compose import repeats_a_recorded_command
from recur.runs import journal, trust
from recur.runs.files import check_links, open_inside
from recur.runs.journal import Journal
from recur.runs.metrics import check_metric, family_of
from recur.sweeps.job import Job, Needs, needs_of
from recur.sweeps.progress import SweepProgress
from recur.sweeps.runner import Executor, Listed, Outcome, Source, run_jobs
from recur.sweeps.space import difference

_OWN = (
    "hydra.launcher",
    "hydra/launcher",
    "hydra.sweeper",
    "hydra/sweeper",
    "hydra.sweep.",
    "hydra.mode",
    "hydra.run.",
)


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

    def header(self) -> dict[str, Any]:
        """The first line of the journal."""
        return {
            "format": journal.FORMAT,
            "search": self.search,
            "space": dict(self.space),
            "jobs": self.total,
            "monitor": self.monitor,
            "mode": self.mode,
            "objectives": dict(self.objectives or {self.monitor: self.mode}),
            "command": shlex.join(["python", "-m", door(), *sys.argv[1:]]),
            "argv": sys.argv[1:],
        }


class FreshProcessLauncher(Launcher):
    """Runs every job as a process of its own, in run mode.

    Args:
        fail_fast: stop the sweep at the first job that fails.
        grace_seconds: time a stopped job has to end by itself.
    """

    def __init__(self, fail_fast: bool, grace_seconds: float) -> None:
        if not isinstance(fail_fast, bool):
            raise ValueError(f"hydra.launcher.fail_fast must be true or false, got {fail_fast!r}")
        self.fail_fast, self.grace = fail_fast, grace_seconds
        self.config: Any = None
        self.context: Any = None
        self._unchecked: list[Any] | None = []  # configs, until they were held against the classes they name
        self._begun = False

    @abstractmethod
    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """Where the jobs will run.

        Raises:
            ValueError: the place cannot serve these needs.
        """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives."""
        setup_globals()
        self.config, self.context = config, hydra_context
        HydraConfig.instance().set_config(config)

    @property
    def folder(self) -> Path:
        """The sweep's folder; `resume=` names it where there is one."""
        again = self.config.get("resume")
        return Path(str(again or self.config.hydra.sweep.dir)).expanduser()

    @property
    def resuming(self) -> bool:
        """Whether an earlier sweep is to be completed."""
        return bool(self.config.get("resume"))

    def compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The config this job will see."""
        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
            cfg.hydra.runtime.output_dir = str(self.folder / str(number))
        return cfg

    def job(self, number: int, overrides: Sequence[str]) -> Job:
        """A job, composed and checked.

        Raises:
            ValueError: its config lacks a value, or names a metric that no run writes.
        """
        cfg = self.compose(number, overrides)
        HydraConfig.instance().set_config(cfg)
        try:
            subdir = str(OmegaConf.select(cfg, "hydra.sweep.subdir"))
            missing = [key for key in OmegaConf.missing_keys(cfg) if not key.startswith("hydra")]
            if missing:
                raise ValueError(f"{missing[0]} has no value: set {missing[0]}=...")
            monitor = str(cfg.get("monitor", ""))
            family = family_of(str(OmegaConf.select(cfg, "model._target_", default="")))
            check_metric(monitor, family, key="monitor")
            needs = needs_of(cfg)
            if self._unchecked is not None:
                own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
                self._unchecked.append(OmegaConf.to_container(own, resolve=True))
            if repeats_a_recorded_command():
                self._check_foreign(number, cfg)
        finally:
            HydraConfig.instance().set_config(self.config)
        return Job(
            number,
            tuple(overrides),
            self.folder / subdir,
            self.folder / ".locks" / str(number),
            needs,
            monitor,
            door(),
            flags=(*flags(), *inherited_overrides(self.config)),
        )

    def _check_foreign(self, number: int, cfg: DictConfig) -> None:
        """Look at a job's config as at a foreign run's: nobody typed it in this command."""
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        for resolve in (False, True):
            content: Any = OmegaConf.to_container(own, resolve=resolve)
            trust.check_config(content, (), f"job {number} of {self.folder}", self.folder)

    def jobs(self, rows: Sequence[Sequence[str]], first: int = 0) -> list[Job]:
        """Jobs for these settings; a resumed sweep gives every setting its former number."""
        known: dict[tuple[str, ...], int] = {}
        if self.resuming:
            for event in journal.read(self.folder):
                if event["event"] == "start":
                    known[tuple(event["overrides"])] = event["job"]
        used = set(known.values())
        free = (number for number in range(first, first + len(rows) + len(used) + 1) if number not in used)
        numbers = [known[tuple(row)] if tuple(row) in known else next(free) for row in rows]
        made = [self.job(number, row) for number, row in zip(numbers, rows, strict=True)]
        folders = {job.folder for job in made}
        if len(folders) < len(made):
            raise ValueError("hydra.sweep.subdir gives several jobs one folder: leave it at ${hydra.job.num}")
        return made

    def run(self, source: Source, plan: Plan, executor: Executor) -> dict[int, Outcome]:
        """Run a checked sweep to its end and write its leaderboard.

        Raises:
            ValueError: the folder holds another sweep, or this one while it still runs; a class that a config names
                takes no such key or value.
            KeyboardInterrupt: stopped; the sweep can be resumed.
        """
        folder = self.folder
        if self.resuming:
            journal.read(folder)  # before anything is made there
        with contextlib.ExitStack() as held:
            held.enter_context(contextlib.closing(executor))
            self._compare(plan)
            self._check_classes()
            held.enter_context(_only_one(folder))
            book = held.enter_context(contextlib.closing(self._begin(plan)))
            progress = SweepProgress(plan.total, executor.capacity, plan.monitor, plan.mode, plan.constant)
            progress.say(f"sweep      {folder}")
            progress.say(f"jobs       {plan.total}, {plan.search}; {executor.title}")
            with progress, _terminated_like_interrupted():
                try:
                    outcomes = run_jobs(source, executor, book, progress, self.fail_fast)
                except KeyboardInterrupt:
                    progress.say(f"stopped; go on with: python -m {door()} -m resume={shlex.quote(str(folder))}")
                    raise
            self._answer(folder, progress)
        return outcomes

    def _begin(self, plan: Plan) -> Journal:
        self._compare(plan)  # once more: now nobody else begins it
        if self.resuming or self._begun:
            return Journal(self.folder)
        self._begun = True
        book = Journal.begin(self.folder, **plan.header())
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        return book

    def _check_classes(self) -> None:
        """Hold the configs against the classes they name, as each run itself will: it takes seconds to load them."""
        from recur.config import schema

        for config in self._unchecked or ():
            seed = config.get("seed", 0)
            if not isinstance(seed, int) or not 0 <= seed < 2**32:
                raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed}")
            trainer = {key: value for key, value in config.get("trainer", {}).items() if key != "precision"}
            schema.check({**config, "trainer": trainer}, "")  # precision=auto is ours
        self._unchecked = None

    def _compare(self, plan: Plan) -> None:
        """Refuse a folder that holds another sweep."""
        if self.resuming:
            header = journal.read(self.folder)[0]
            changed = difference(header["space"], plan.space)
            if header["search"] != plan.search:
                changed = f"search: then {header['search']}, now {plan.search}" + (f"; {changed}" if changed else "")
            objectives = plan.header()["objectives"]
            if header["objectives"] != objectives:
                changed += f"{'; ' if changed else ''}objectives: then {header['objectives']}, now {objectives}"
            if changed:
                raise ValueError(f"cannot resume {self.folder}, this is another sweep: {changed}")
        elif (self.folder / journal.NAME).is_file() and not self._begun:  # a sweeper may come with batch after batch
            raise ValueError(
                f"{self.folder} is a sweep already: go on with resume={self.folder}, or name another folder"
            )

    def _answer(self, folder: Path, progress: SweepProgress) -> None:
        from recur.leaderboard.table import Leaderboard

        try:
            leaderboard = Leaderboard.of([folder])
        except ValueError as error:
            progress.say(str(error))
            return
        progress.say(leaderboard.as_text(limit=10))
        page = leaderboard.write(folder / "results")
        progress.say(f"results    {page}")
        progress.say(f"compare    tensorboard --logdir {folder}")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch for a sweeper that is not ours."""
        rows = [[text for text in row if not text.startswith("resume=")] for row in job_overrides]
        made = self.jobs(rows, initial_job_idx)
        plan = self.plan_of_list("a list", made, {"fixed": {}, "varied": {"jobs": [" ".join(row) for row in rows]}})
        outcomes = self.run(Listed(made), plan, self.executor([job.needs for job in made], len(made)))
        return [_returned(job, outcomes.get(job.number)) for job in made]

    def plan_of_list(self, search: str, made: Sequence[Job], space: Mapping[str, Any]) -> Plan:
        """The plan of a sweep whose jobs are known beforehand."""
        monitors = dict.fromkeys(job.monitor for job in made)
        if len(monitors) > 1:
            raise ValueError(f"the jobs of a sweep are compared by one metric, these have {', '.join(monitors)}")
        first = self.compose(0, made[0].overrides)
        common = set(made[0].overrides).intersection(*[job.overrides for job in made]) if len(made) > 1 else set()
        return Plan(
            search, space, len(made), next(iter(monitors)), str(first.get("mode", "max")), tuple(sorted(common))
        )


def _returned(job: Job, outcome: Outcome | None) -> JobReturn:
    result = JobReturn(overrides=list(job.overrides), working_dir=str(job.folder))
    if outcome is not None and outcome.state in ("done", "pruned"):
        result.status, result.return_value = JobStatus.COMPLETED, outcome.value
    else:
        reason = outcome.reason if outcome else "it was not started"
        result.status, result.return_value = (
            JobStatus.FAILED,
            RuntimeError(f"job {job.number}: {reason}; log {job.log}"),
        )
    return result


def door() -> str:
    """The module that jobs run: the one that was typed."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = str(getattr(spec, "name", "") or "")
    return name if name.startswith("recur.") else "recur.train"


def flags() -> list[str]:
    """Hydra's own flags that say where configs are; every job needs them too."""
    from hydra._internal.utils import get_args_parser

    given, _ = get_args_parser().parse_known_args()
    found = []
    for flag in ("config_path", "config_name", "config_dir"):
        value = getattr(given, flag)
        if value is not None:
            found += [f"--{flag.replace('_', '-')}", str(value)]
    return found


def inherited_overrides(config: DictConfig) -> list[str]:
    """Overrides of Hydra's own settings that concern a job and not the sweep."""
    return [str(text) for text in config.hydra.overrides.hydra if not str(text).lstrip("+~").startswith(_OWN)]


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder; wait until nothing of a former life of it runs."""
    import fcntl
    import time

    locks = folder / ".locks"
    check_links(folder)  # before anything in it is opened
    locks.mkdir(parents=True, exist_ok=True)
    with open(open_inside(locks, "sweep", os.O_WRONLY | os.O_CREAT), "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is being run by another process") from None
        until = time.monotonic() + 30
        for path in sorted(locks.iterdir()):
            if path.name == "sweep":
                continue
            with open(open_inside(locks, path.name, os.O_WRONLY | os.O_APPEND), "a") as former:
                while True:
                    try:
                        fcntl.flock(former, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        if time.monotonic() > until:
                            raise ValueError(
                                f"job {path.name} of {folder} still runs from before: end it first"
                            ) from None
                        time.sleep(0.05)
        yield


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP stop a sweep as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {}
    for which in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not in the main thread
            before[which] = signal.signal(which, interrupt)
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def leave(outcomes: Mapping[int, Outcome], total: int, folder: Path) -> None:
    """End the process with what the exit code should say.

    Raises:
        SystemExit: 1 where a job failed or was never run.
    """
    failed = [number for number, outcome in sorted(outcomes.items()) if outcome.state == "failed"]
    if failed or any(outcome.state == "stopped" for outcome in outcomes.values()):
        named = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
        print(
            f"recur: {len(failed)} of {total} jobs failed ({named}); run them again with: "
            f"python -m {door()} -m resume={shlex.quote(str(folder))}",
            file=sys.stderr,
        )
        raise SystemExit(1)
