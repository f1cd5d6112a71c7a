"""Optuna's search as a source of jobs: a setting is asked for when a slot is free, never before.

The study lives in a journal file in the sweep's folder. The sweep asks and tells; the jobs themselves report their
validations there and hear whether going on is hopeless. Job n is trial n.
"""

import json
import logging
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recur.runs.metrics import metric
from recur.sweeps.job import TRIAL, Job
from recur.sweeps.runner import Outcome
from recur.sweeps.space import Dimension, Space

JOURNAL = "optuna.journal"
LOCK_FILE_SUFFIX = ".lock"  # Optuna's
NAME = "recur"


def require() -> Any:
    """Optuna itself.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("hydra/sweeper=optuna needs the extra optuna: pip install 'recur[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    return optuna


def storage(journal: Path) -> Any:
    """The study's journal file; any number of processes may use it."""
    optuna = require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its own journal experimental
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))


def pruner(kind: str | None, settings: Mapping[str, Any]) -> Any:
    """The rule by which hopeless trials stop.

    Args:
        kind: `median`, `hyperband` or None.
        settings: `warmup` validations that every trial may take, `startup` trials that all run to their end; of
            Hyperband the fewest validations `warmup` and the `reduction` factor.

    Raises:
        ValueError: there is no such rule.
    """
    optuna = require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is None:
            return optuna.pruners.NopPruner()
        if kind == "median":
            return optuna.pruners.MedianPruner(
                n_startup_trials=int(settings["startup"]), n_warmup_steps=int(settings["warmup"])
            )
        if kind == "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=max(1, int(settings["warmup"])), reduction_factor=int(settings["reduction"])
            )
    raise ValueError(f"hydra.sweeper.pruner.kind can be median, hyperband or null, got {kind!r}")


def trial_of(told: str) -> Any:
    """The trial that a job belongs to, from what the sweep put into its environment."""
    optuna = require()
    content = json.loads(told)
    rule = pruner(content["pruner"].get("kind"), content["pruner"])
    study = optuna.load_study(study_name=NAME, storage=storage(Path(content["journal"])), pruner=rule)
    found = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == content["trial"])
    return optuna.trial.Trial(study, found._trial_id)


def distribution(dimension: Dimension) -> Any:
    """A dimension in Optuna's words.

    Raises:
        ValueError: it is the seed, which is nothing to be optimised.
    """
    optuna = require()
    if dimension.key == "seed":
        raise ValueError(
            "optuna cannot search over seed: it would choose a lucky one; drop it, or search with hydra/sweeper=random"
        )
    if dimension.low is None or dimension.high is None:
        if dimension.spec.startswith("range(") and len(dimension.texts) > 2:  # their order means something
            values = sorted(map(float, dimension.texts))
            if all(text.lstrip("-").isdecimal() for text in dimension.texts):
                return optuna.distributions.IntDistribution(
                    int(values[0]), int(values[-1]), step=int(values[1] - values[0])
                )
            return optuna.distributions.FloatDistribution(values[0], values[-1], step=values[1] - values[0])
        return optuna.distributions.CategoricalDistribution(dimension.texts)
    if dimension.integer:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


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


def _clear_up(journal: Path) -> None:
    """Mend what a killed process left of a journal that nobody else uses now: its lock, half of a last line.

    Optuna would wait for the lock for half a minute, and never read a journal with half a line in its middle.
    """
    Path(f"{journal}{LOCK_FILE_SUFFIX}").unlink(missing_ok=True)
    if journal.is_file() and not (content := journal.read_bytes()).endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


class Trials:
    """A source of jobs that asks a study.

    Args:
        folder: of the sweep.
        space: what is searched.
        make_job: (number, overrides) to a job.
        objectives: metric name to `max` or `min`.
        n_trials: how many trials to bring to an end, failed ones of this sitting included.
        sampler: `tpe` or `random`.
        startup: trials at random before TPE models anything.
        seed: of the sampler.
        pruning: `kind` and settings of the pruner.

    Raises:
        ValueError: pruning with several objectives, which Optuna cannot do.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        make_job: Callable[[int, tuple[str, ...]], Job],
        objectives: Mapping[str, str],
        n_trials: int,
        sampler: str,
        startup: int,
        seed: int,
        pruning: Mapping[str, Any],
    ) -> None:
        optuna = require()
        self._space, self._make, self._objectives, self.total = space, make_job, dict(objectives), n_trials
        self._distributions = {d.key: distribution(d) for d in space.dimensions}
        self._pruning = dict(pruning)
        rule = pruner(pruning.get("kind"), pruning)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if sampler == "tpe":
                chooser = optuna.samplers.TPESampler(
                    n_startup_trials=startup, multivariate=True, constant_liar=True, seed=seed
                )
            elif sampler == "random":
                chooser = optuna.samplers.RandomSampler(seed=seed)
            else:
                raise ValueError(f"hydra.sweeper.sampler can be tpe or random, got {sampler!r}")
        self._journal = (folder / JOURNAL).absolute()
        self._open = lambda: optuna.create_study(
            study_name=NAME,
            storage=storage(self._journal),
            sampler=chooser,
            pruner=rule,
            directions=["maximize" if mode == "max" else "minimize" for mode in self._objectives.values()],
            load_if_exists=True,
        )
        self._study: Any = None
        self._again: deque[Job] = deque()
        self._budget = 0

    def _begin(self) -> None:
        """Open the study; take up what an earlier sitting left running."""
        _clear_up(self._journal)
        self._study = self._open()
        states = require().trial.TrialState
        ended = 0
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state in (states.COMPLETE, states.PRUNED):
                ended += 1
            elif trial.state == states.RUNNING:
                if set(trial.params) == set(self._distributions):
                    self._again.append(self._job(trial))
                else:  # cut while it was being asked for
                    self._study.tell(trial.number, state=states.FAIL)
        self._budget = self.total - ended

    def _job(self, trial: Any) -> Job:
        rows = [f"{d.key}={_text(d, trial.params[d.key])}" for d in self._space.dimensions]
        job = self._make(trial.number, (*self._space.fixed.values(), *rows))
        told = {"journal": str(self._journal), "trial": trial.number, "pruner": self._pruning}
        job.environment[TRIAL] = json.dumps(told)
        return job

    def take(self) -> Job | None:
        """Ask for the next setting."""
        if self._study is None:
            self._begin()
        if self._budget <= 0:
            return None
        self._budget -= 1
        if self._again:
            return self._again.popleft()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._job(self._study.ask(self._distributions))

    def put(self, job: Job, outcome: Outcome) -> None:
        """Tell the study; a job that was stopped stays a running trial, to be gone on with."""
        states = require().trial.TrialState
        if outcome.state == "stopped":
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if outcome.state == "pruned":
                self._study.tell(job.number, state=states.PRUNED)
                return
            values = [metric(outcome.record or {}, name) for name in self._objectives]
            if outcome.state == "done" and all(v is not None and math.isfinite(v) for v in values):
                self._study.tell(job.number, values)
            else:
                self._study.tell(job.number, state=states.FAIL)
