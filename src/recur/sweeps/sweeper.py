"""The sweepers: a grid, settings at random, or Optuna's search; all read Hydra's syntax and know how to go on."""

from abc import abstractmethod
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from recur.runs.metrics import check_metric, family_of
from recur.sweeps import space as spaces
from recur.sweeps.launcher import FreshProcessLauncher, Plan, leave
from recur.sweeps.runner import Listed


class OwnSweeper(Sweeper):
    """What our sweepers share: how they are set up and how they end.

    Args:
        params: settings and their values in Hydra's syntax; what is typed goes before them.
    """

    def __init__(self, params: Any) -> None:
        self.params = dict(params or {})
        self.launcher: Launcher | None = None
        self.context: Any = None
        self.config: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep; leaves with exit code 1 where a job failed.

        Raises:
            ValueError: what is to be searched makes no sense; nothing was started.
        """
        space = spaces.parse(self.params, arguments, self.context.config_loader)
        return self.search(space)

    @abstractmethod
    def search(self, space: spaces.Space) -> Any:
        """Choose settings and run them."""

    def run_list(self, search: str, space: spaces.Space, rows: list[tuple[str, ...]]) -> Any:
        """Run settings known beforehand."""
        launcher = self.launcher
        if not isinstance(launcher, FreshProcessLauncher):
            assert launcher is not None
            self.validate_batch_is_legal(rows)
            return [[result.return_value for result in launcher.launch(rows, initial_job_idx=0)]]
        jobs = launcher.jobs(rows)
        plan = launcher.plan_of_list(search, jobs, space.as_record())
        outcomes = launcher.run(Listed(jobs), plan, launcher.executor([job.needs for job in jobs], len(jobs)))
        leave(outcomes, plan.total, launcher.folder)
        return {number: outcome.value for number, outcome in outcomes.items()}


class Grid(OwnSweeper):
    """Every combination of the listed values."""

    def search(self, space: spaces.Space) -> Any:
        """Run the grid."""
        return self.run_list("grid", space, space.grid())


class Random(OwnSweeper):
    """Settings drawn at random.

    Args:
        params: settings and their values.
        n_trials: how many different settings; each runs with every listed `seed`.
        seed: of the drawing.
    """

    def __init__(self, params: Any, n_trials: int, seed: int) -> None:
        super().__init__(params)
        if not isinstance(n_trials, int) or n_trials < 1:
            raise ValueError(f"hydra.sweeper.n_trials must be a whole number from 1, got {n_trials!r}")
        self.n_trials, self.seed = n_trials, seed

    def search(self, space: spaces.Space) -> Any:
        """Run the draws."""
        return self.run_list(f"random, seed {self.seed}", space, space.sample(self.n_trials, self.seed))


class Optuna(OwnSweeper):
    """Optuna's search: a setting is asked for when a slot is free, hopeless trials stop early.

    Args:
        params: settings and their values.
        n_trials: how many trials.
        objectives: metric names and `max` or `min`; None for the run's own `monitor`.
        sampler: `tpe` or `random`.
        startup_trials: trials at random before TPE models anything.
        seed: of the sampler.
        pruner: `kind` (`median`, `hyperband` or None), `startup`, `warmup`, `reduction`.
    """

    def __init__(
        self,
        params: Any,
        n_trials: int,
        objectives: Any,
        sampler: str,
        startup_trials: int,
        seed: int,
        pruner: Any,
    ) -> None:
        super().__init__(params)
        if not isinstance(n_trials, int) or n_trials < 1:
            raise ValueError(f"hydra.sweeper.n_trials must be a whole number from 1, got {n_trials!r}")
        self.n_trials, self.sampler, self.startup, self.seed = n_trials, sampler, startup_trials, seed
        self.objectives, self.pruner = dict(objectives or {}), dict(pruner or {})

    def search(self, space: spaces.Space) -> Any:
        """Check the ends of the space, then let the study choose."""
        from recur.sweeps import study

        study.require()
        launcher = self.launcher
        if not isinstance(launcher, FreshProcessLauncher):
            raise ValueError("hydra/sweeper=optuna needs hydra/launcher=slots, ray or submitit_slurm")
        if not space.dimensions:
            raise ValueError(
                "there is nothing to search: give settings with several values, as in optimizer.lr=1e-3,1e-2"
            )
        probes = [launcher.job(number, row) for number, row in enumerate(study.probes(space))]
        checked = launcher.plan_of_list("optuna", probes, space.as_record())
        objectives = {str(k): str(v) for k, v in self.objectives.items()} or {checked.monitor: checked.mode}
        config = launcher.compose(0, probes[0].overrides)
        family = family_of(str(OmegaConf.select(config, "model._target_", default="")))
        for name, mode in objectives.items():
            check_metric(name, family, resources=True, key="hydra.sweeper.objectives")
            if mode not in ("max", "min"):
                raise ValueError(f"hydra.sweeper.objectives.{name} must be max or min, got {mode!r}")
        pruned_by = self.pruner.get("kind")
        if pruned_by is not None and (len(objectives) > 1 or checked.monitor not in objectives):
            raise ValueError(
                f"pruning needs {checked.monitor} as the one objective, got {', '.join(objectives)}: "
                "set hydra.sweeper.pruner.kind=null"
            )
        monitor, mode = next(iter(objectives.items()))
        plan = Plan("optuna", checked.space, self.n_trials, monitor, mode, tuple(space.fixed.values()), objectives)
        source = study.Trials(
            launcher.folder,
            space,
            launcher.job,
            objectives,
            self.n_trials,
            self.sampler,
            self.startup,
            self.seed,
            self.pruner,
        )
        outcomes = launcher.run(source, plan, launcher.executor([job.needs for job in probes], self.n_trials))
        leave(outcomes, plan.total, launcher.folder)
        return {number: outcome.value for number, outcome in outcomes.items()}
