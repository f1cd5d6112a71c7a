"""Optuna's search as a source of jobs: a setting is asked for when a slot is free, never before.

The study is kept in a journal file in the sweep's folder. The sweep asks for settings and reports results; a job itself
reports its validations there and stops where the pruner says so. Job n is trial n.
"""

import json
import logging
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from recur.errors import UserError
from recur.runs import journal as run_journal
from recur.runs.extras import require_extra
from recur.runs.files import naming
from recur.runs.metrics import metric
from recur.sweeps import locks, samplers
from recur.sweeps.job import TRIAL, Job
from recur.sweeps.runner import Outcome
from recur.sweeps.space import Dimension, Space

JOURNAL = "optuna.journal"
NAME = "recur"
_LARGEST_SEED = 2**32 - 1  # that NumPy takes, from which Optuna's samplers draw


def require() -> Any:
    """Optuna itself, with its log messages off.

    Raises:
        UserError: it is not installed.
    """
    optuna = require_extra("optuna", "optuna", "hydra/sweeper=optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    return optuna


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Optuna calls its own journal, samplers and pruners experimental; a resumed run repeats steps it reported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def storage(journal: Path) -> Any:
    """The study's journal file; any number of processes may use it.

    It is locked by the operating system, which frees the lock of a process that is killed.
    """
    optuna = require()
    files = optuna.storages.journal

    class Lock(files.JournalFileOpenLock):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self._held = locks.Lock(f"{journal}.lock")

        def acquire(self) -> bool:
            self._held.acquire()
            _cut_last_line(journal)  # half of one, which a full disk left: the next would be glued to it
            return True

        def release(self) -> None:
            self._held.release()

    class Backend(files.JournalFileBackend):  # type: ignore[name-defined]
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            with naming(journal):
                super().append_logs(logs)

    with _without_warnings():
        return optuna.storages.JournalStorage(Backend(str(journal), Lock()))


@dataclass(frozen=True)
class Pruner:
    """The keys of `hydra.sweeper.pruner`.

    Args:
        kind: `median`, `hyperband`, None, or the settings of another: `_target_`, a class of `optuna.pruners`, and its
            arguments.
        startup: of median, trials that all run to their end.
        warmup: validations that every trial may take; of Hyperband the fewest.
        reduction: of Hyperband, what part of the trials goes on: one in so many.

    Raises:
        UserError: a value that Optuna would refuse.
    """

    kind: str | Mapping[str, Any] | None = None
    startup: int = 5
    warmup: int = 1
    reduction: int = 3

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.kind, Mapping):
            self.rule()  # refuses what cannot be built
        elif self.kind not in ("median", "hyperband", None):
            rule = "must be median, hyperband or null"
            raise UserError("hydra.sweeper.pruner.kind", self.kind, rule, "or give it a _target_ of optuna.pruners")
        for name, least in (("startup", 0), ("warmup", 0), ("reduction", 2)):
            _whole(f"hydra.sweeper.pruner.{name}", getattr(self, name), least)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Pruner":
        """From plain settings.

        Raises:
            UserError: a key that there is not, or a wrong value.
        """
        if not isinstance(settings, Mapping):
            raise UserError(
                "hydra.sweeper.pruner", settings, "must be settings", "as in hydra.sweeper.pruner.kind=null"
            )
        known = ("kind", "startup", "warmup", "reduction")
        if "_target_" in settings:  # Hydra adds it to the usual keys, which say nothing then
            return cls(kind={key: value for key, value in settings.items() if key not in known})
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise UserError(f"hydra.sweeper.pruner.{unknown[0]}", rule=f"is no key: there are {', '.join(known)}")
        return cls(**settings)

    def rule(self) -> Any:
        """The pruner as an object of Optuna's."""
        pruners = require().pruners
        with _without_warnings():
            if isinstance(self.kind, Mapping):
                return samplers.make(self.kind, "pruner")
            if self.kind == "median":
                return pruners.MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.warmup)
            if self.kind == "hyperband":
                return pruners.HyperbandPruner(min_resource=max(1, self.warmup), reduction_factor=self.reduction)
        return pruners.NopPruner()


def _whole(key: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise UserError(key, value, f"must be a whole number of at least {least}")


@dataclass(frozen=True)
class SearchSettings:
    """How a study chooses.

    Args:
        objectives: metric name to `max` or `min`.
        n_trials: how many trials to bring to an end.
        sampler: `tpe`, `random`, or the settings of another: `_target_`, a class of `optuna.samplers`, and its
            arguments.
        startup_trials: trials at random before TPE models anything.
        seed: of the sampler.
        pruner: when a trial stops early.

    Raises:
        UserError: a value that Optuna would refuse.
    """

    objectives: Mapping[str, str]
    n_trials: int
    sampler: str | Mapping[str, Any] = "tpe"
    startup_trials: int = 8
    seed: int = 0
    pruner: Pruner = Pruner()

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("n_trials", 1), ("startup_trials", 0), ("seed", 0)):
            _whole(f"hydra.sweeper.{name}", getattr(self, name), least)
        if self.seed > _LARGEST_SEED:
            raise UserError("hydra.sweeper.seed", self.seed, f"must be at most {_LARGEST_SEED}")
        if isinstance(self.sampler, Mapping) and "_target_" in self.sampler:
            self.rule()  # refuses what cannot be built
        elif self.sampler not in ("tpe", "random"):
            rule = "must be tpe or random"
            raise UserError(
                "hydra.sweeper.sampler", self.sampler, rule, "or {_target_: optuna.samplers.NSGAIISampler, ...}"
            )
        for name, mode in self.objectives.items():
            if mode not in ("max", "min"):
                raise UserError(f"hydra.sweeper.objectives.{name}", mode, "must be max or min")

    def rule(self, asked: int = 0) -> Any:
        """The sampler as an object of Optuna's.

        Args:
            asked: trials that the study has already; a sampler with the seed as it is would draw their settings again.
        """
        own = require().samplers

        def seeded(seed: int) -> int:
            return int(np.random.SeedSequence([seed, asked]).generate_state(1)[0]) if asked else seed

        with _without_warnings():
            if isinstance(self.sampler, Mapping):
                return samplers.make(self.sampler, "sampler", self.seed, seeded)
            if self.sampler == "random":
                return own.RandomSampler(seed=seeded(self.seed))
            return own.TPESampler(
                n_startup_trials=self.startup_trials, multivariate=True, constant_liar=True, seed=seeded(self.seed)
            )

    @property
    def directions(self) -> list[str]:
        """The objectives' modes as Optuna names them."""
        return ["maximize" if mode == "max" else "minimize" for mode in self.objectives.values()]

    def check(self, space: Space) -> None:
        """Try a sampler of the user's own on the space.

        Raises:
            UserError: it cannot search it.
        """
        if isinstance(self.sampler, Mapping):
            distributions = {d.key: distribution(d) for d in space.dimensions}
            with _without_warnings():
                samplers.try_out(self.rule(), self.directions, distributions, "hydra.sweeper.sampler")


def trial_of(description: str) -> Any:
    """The trial that a job belongs to, from what the sweep put into its environment."""
    optuna = require()
    content = json.loads(description)
    stored = storage(Path(content["journal"]))
    study = optuna.load_study(study_name=NAME, storage=stored, pruner=Pruner.of(content["pruner"]).rule())
    number = stored.get_trial_id_from_study_id_trial_number(stored.get_study_id_from_name(NAME), content["trial"])
    return optuna.trial.Trial(study, number)


class Pruning(pl.Callback):
    """Reports every validation of a job to its study, and stops the run where the pruner says so.

    It stands after the callback that writes the validations down.

    Args:
        folder: the run's folder.
        monitor: name of the metric to report.
        description: of the trial; by default what the sweep put into the environment.

    Attributes:
        pruned: whether the study ended the run.
    """

    def __init__(self, folder: Path, monitor: str, description: str | None = None) -> None:
        self._folder, self._monitor = folder, monitor
        self._description = os.environ[TRIAL] if description is None else description
        self._trial: Any = None
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        """Whether the study ended the run."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that was pruned stays so, should it be started again before it could end."""
        self.pruned = state_dict["pruned"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on rank 0, and stop on all ranks."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        stop = False
        if trainer.is_global_zero and self._monitor in trainer.callback_metrics:
            self._trial = self._trial or trial_of(self._description)
            with _without_warnings():
                step = len(run_journal.read_validations(self._folder))
                self._trial.report(float(trainer.callback_metrics[self._monitor]), step=step)
                stop = _may_stop(trainer) and bool(self._trial.should_prune())
        if trainer.strategy.broadcast(stop):
            self.pruned = trainer.should_stop = True


def _may_stop(trainer: pl.Trainer) -> bool:
    """Whether a run may end now: else it trains on, and would be called pruned at its own end."""
    over = trainer.current_epoch + trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return over >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)


def distribution(dimension: Dimension) -> Any:
    """A dimension as a distribution of Optuna's.

    Raises:
        UserError: it is the seed, which must not be optimised.
    """
    optuna = require()
    if dimension.key.lstrip("+") == "seed":
        raise UserError(
            "seed",
            rule="cannot be searched over by optuna, which would choose a lucky one",
            remedy="leave it out, or search with hydra/sweeper=random",
        )
    if dimension.low is None or dimension.high is None:
        if dimension.spec.startswith("range(") and len(dimension.texts) > 2:  # their order means something
            values = sorted(map(float, dimension.texts))
            if all(text.lstrip("-").isdecimal() for text in dimension.texts):
                return optuna.distributions.IntDistribution(
                    int(values[0]), int(values[-1]), step=int(values[1] - values[0])
                )
            return optuna.distributions.FloatDistribution(**_even(values))
        return optuna.distributions.CategoricalDistribution(dimension.texts)
    if dimension.integer:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _even(values: Sequence[float]) -> dict[str, float]:
    """The ends and the step of a range, without the rounding of its numbers: Optuna drops what its steps do not hit."""
    tiny = (values[1] - values[0]) * 1e-6  # 0.3 less three times 0.1 is not quite 0
    low, second = (Decimal(f"{value:.12g}") if abs(value) > tiny else Decimal(0) for value in values[:2])
    step = second - low
    return {"low": float(low), "high": float(low + step * (len(values) - 1)), "step": float(step)}


def probes(space: Space) -> list[tuple[str, ...]]:
    """Settings in which every value that can be listed, and both ends of every interval, come at least once."""
    columns = [
        [f"{d.key}={text}" for text in d.texts]
        if d.low is None
        else [f"{d.key}={int(v) if d.integer else v}" for v in (d.low, d.high) if v is not None]
        for d in space.dimensions
    ]
    depth = max(map(len, columns), default=1)
    return [(*space.fixed.values(), *[column[i % len(column)] for column in columns]) for i in range(depth)]


def _text(dimension: Dimension, value: Any) -> str:
    """A trial's value as override text."""
    if dimension.texts:
        return value if isinstance(value, str) else min(dimension.texts, key=lambda text: abs(float(text) - value))
    return str(value) if dimension.integer else repr(float(value))


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; a step of a range may differ by rounding."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def _cut_last_line(journal: Path) -> None:
    """Remove the half of a last line that a killed process left: Optuna would never read beyond it."""
    if journal.is_file() and not (content := journal.read_bytes()).endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


class Trials:
    """A source of jobs that asks a study.

    Args:
        folder: of the sweep.
        space: what is searched.
        make_job: (number, overrides) to a job.
        settings: how to choose.
        known: overrides of the jobs that the sweep began earlier, by number; trials that the study's journal has lost
            are restored from them.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        make_job: Callable[[int, tuple[str, ...]], Job],
        settings: SearchSettings,
        known: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        self._space, self._make, self._settings = space, make_job, settings
        self.total = settings.n_trials
        self._distributions = {d.key: distribution(d) for d in space.dimensions}
        self._journal = (folder / JOURNAL).absolute()
        self._known = dict(known or {})
        self._study: Any = None
        self._ended = False  # by the sampler itself, which has tried all there is
        self._again: deque[Job] = deque()
        self._budget = 0

    def _open(self) -> Any:
        """The study of this sweep.

        Raises:
            UserError: its journal is damaged.
        """
        optuna = require()
        _cut_last_line(self._journal)
        try:
            with _without_warnings():
                study = optuna.create_study(
                    study_name=NAME,
                    storage=storage(self._journal),
                    pruner=self._settings.pruner.rule(),
                    directions=self._settings.directions,
                    load_if_exists=True,
                )
                study.get_trials(deepcopy=False)
                study.stop = self._end  # Optuna's own raises where trials are asked for one by one
        except OSError:
            raise
        except Exception as error:  # a damaged line makes Optuna fail in any way whatever
            raise UserError(
                str(self._journal),
                rule=f"cannot be read by Optuna ({type(error).__name__})",
                remedy="move it away: it will be restored from the sweep's own journal",
            ) from error
        return study

    def _end(self) -> None:
        self._ended = True

    def completed(self) -> list[Job]:
        """Open the study; jobs of the trials that have ended."""
        self._study = self._open()
        self._take_choices()
        self._restore()
        self._study.sampler = self._settings.rule(len(self._study.get_trials(deepcopy=False)))
        states = require().trial.TrialState
        self._budget, ended = self.total, []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state in (states.COMPLETE, states.PRUNED):
                self._budget -= 1
                ended.append(self._job(trial))
            elif trial.state == states.RUNNING:
                if set(trial.params) == set(self._distributions):
                    self._again.append(self._job(trial))
                else:  # the sweep was killed while it asked for this trial
                    self._study.tell(trial.number, state=states.FAIL)
        return [job for job in ended if job.record() is not None]

    def _take_choices(self) -> None:
        """Keep the choices in the order in which the study has them: Optuna takes them for others in another one."""
        for trial in self._study.get_trials(deepcopy=False):
            for key, stored in trial.distributions.items():
                now, then = (getattr(one, "choices", ()) for one in (self._distributions.get(key), stored))
                if now and all(choice in then for choice in now) and all(choice in now for choice in then):
                    self._distributions[key] = stored

    def _restore(self) -> None:
        """Add the trials that the study's journal has lost: job n must stay trial n.

        Raises:
            UserError: a trial has other settings than the job of its number.
        """
        optuna, states = require(), require().trial.TrialState
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            known = self._known.get(trial.number)
            params = self._params(known or ())
            if (
                params
                and set(trial.params) == set(params)
                and not all(_same(value, trial.params[key]) for key, value in params.items())
            ):
                raise UserError(
                    str(self._journal),
                    rule=f"has other settings for trial {trial.number} than job {trial.number} ran with",
                    remedy="move it away: it will be restored from the sweep's own journal",
                )
        for number in range(len(trials), max(self._known, default=-1) + 1):
            params = self._params(self._known.get(number, ()))
            content: dict[str, Any] = {"state": states.FAIL}
            if params:
                content = {"state": states.RUNNING, "params": params, "distributions": self._distributions}
                record = self._make(number, self._known[number]).record()
                values = self._values(record or {})
                if record is not None and record.get("pruned"):
                    content |= {"state": states.PRUNED}
                elif record is not None:
                    content |= {"state": states.COMPLETE, "values": values} if values else {"state": states.FAIL}
            with _without_warnings():
                self._study.add_trial(optuna.trial.create_trial(**content))

    def _params(self, overrides: tuple[str, ...]) -> dict[str, Any]:
        """The values of the searched settings in a job's overrides; empty where one is missing or cannot be."""
        texts = dict(text.partition("=")[::2] for text in overrides)
        params = {}
        for key, distributed in self._distributions.items():
            kind = {"IntDistribution": int, "FloatDistribution": float}.get(type(distributed).__name__, str)
            try:
                params[key] = value = kind(texts[key])
            except (KeyError, ValueError):
                return {}
            if isinstance(value, str):
                if value not in distributed.choices:
                    return {}
            elif not distributed.low <= value <= distributed.high:
                params[key] = min(max(value, distributed.low), distributed.high)
                if not _same(value, params[key]):
                    return {}
        return params

    def _values(self, record: Mapping[str, Any]) -> list[float] | None:
        values = [metric(record, name) for name in self._settings.objectives]
        known = [value for value in values if value is not None and math.isfinite(value)]
        return known if len(known) == len(values) else None

    def _job(self, trial: Any) -> Job:
        rows = [f"{d.key}={_text(d, trial.params[d.key])}" for d in self._space.dimensions]
        words = (*self._space.fixed.values(), *rows)
        known = self._known.get(trial.number, ())
        # The words of a job that was begun stand in the mark of its folder, whatever their order is now.
        job = self._make(trial.number, known if set(known) == set(words) else words)
        job.objectives = tuple(self._settings.objectives)
        job.monitor = job.objectives[0]
        if len(job.objectives) == 1:  # Optuna takes no reports of a trial with several
            pruner = self._settings.pruner
            content = {"journal": str(self._journal), "trial": trial.number, "pruner": vars(pruner)}
            job.environment[TRIAL] = json.dumps(content)
        return job

    def take(self) -> Job | None:
        """Ask for the next setting."""
        if self._study is None:
            self.completed()
        if self._budget <= 0:
            return None
        self._budget -= 1
        if self._again:
            return self._again.popleft()
        if self._ended or samplers.grid_is_begun(self._study, self._settings.sampler):
            return None
        with _without_warnings():
            return self._job(self._study.ask(self._distributions))

    def put(self, job: Job, outcome: Outcome) -> None:
        """Report a result; the trial of a job that was stopped stays running, to be continued."""
        states = require().trial.TrialState
        if outcome.state == "stopped":
            return
        values = self._values(outcome.record or {})
        with _without_warnings():
            if outcome.state == "pruned":
                self._study.tell(job.number, state=states.PRUNED)
            elif outcome.state == "done" and values:
                self._study.tell(job.number, values)
            else:
                self._study.tell(job.number, state=states.FAIL)
