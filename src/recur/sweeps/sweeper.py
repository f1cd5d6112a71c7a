"""The sweepers: a grid, settings at random, or Optuna's search; all read Hydra's syntax and can resume."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from recur.errors import UserError
from recur.runs.metrics import check_direction, check_metric, direction, family_of
from recur.sweeps import space as spaces
from recur.sweeps.launcher import FreshProcessLauncher, Plan, leave

_CASES = "must be lists of overrides KEY=VALUE"


class OwnSweeper(Sweeper):
    """The base of this package's sweepers: how they are set up and how they end.

    Args:
        params: settings and their values in Hydra's syntax; what is typed goes before them.

    Raises:
        UserError: `params` are something else.
    """

    launcher: FreshProcessLauncher

    def __init__(self, params: Any) -> None:
        self.params = _mapping(
            "hydra.sweeper.params", params, "settings and their values", "{optimizer.lr: '1e-3,1e-2'}"
        )
        self.context: Any = None
        self.config: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher.

        Raises:
            UserError: it is a launcher of another package.
        """
        self.context, self.config = hydra_context, config
        plugin = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        launcher = getattr(plugin, "launcher", plugin)  # the plugin is a shim, since Hydra imports it in every run
        if not isinstance(launcher, FreshProcessLauncher):
            raise UserError(
                f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}",
                rule="starts no processes of its own, which a run of recur needs",
                remedy="choose hydra/launcher=slots, ray or submitit_slurm",
            )
        self.launcher = launcher

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep; leaves with exit code 1 where a job failed.

        Raises:
            UserError: what is to be searched makes no sense; nothing was started.
        """
        space = spaces.parse(self.params, arguments, self.context.config_loader)
        return self.search(space.in_order(self.launcher.recorded_space()))

    @abstractmethod
    def search(self, space: spaces.Space) -> Any:
        """Choose settings and run them."""

    def run_list(self, search: str, space: spaces.Space, rows: list[tuple[str, ...]]) -> Any:
        """Run settings known beforehand."""
        jobs = self.launcher.jobs(rows)
        plan = self.launcher.plan_of_list(search, jobs, space.as_record())
        outcomes = self.launcher.run_list(jobs, plan)
        leave(outcomes, plan.total, self.launcher.command_again)
        return {number: outcome.value for number, outcome in outcomes.items()}


class Grid(OwnSweeper):
    """Every combination of the listed values, within each case where there are cases.

    What is set once beside the cases is where each of them begins, and a case may set it otherwise. A setting that
    every case sets, or that is listed beside a case which sets it, is refused: one of the two would be lost.

    Args:
        params: settings and their values.
        cases: lists of overrides that belong together, such as `[cell=rnn, num_layers=1]` and `[cell=lstm,
            num_layers=2]`: each list is one point of the grid, where separate settings would make a product.

    Raises:
        UserError: a case is no list of overrides.
    """

    def __init__(self, params: Any, cases: Any = ()) -> None:
        super().__init__(params)
        self.cases: list[tuple[str, ...]] = []
        cases = _plain(cases) or ()
        if not isinstance(cases, (list, tuple)):
            raise UserError("hydra.sweeper.cases", cases, _CASES)
        for case in cases:
            words = list(case) if isinstance(case, (list, tuple)) else [case]
            if wrong := [word for word in words if not isinstance(word, str) or "=" not in word]:
                raise UserError("hydra.sweeper.cases", wrong[0], _CASES)
            self.cases.append(tuple(words))

    def search(self, space: spaces.Space) -> Any:
        """Run the grid."""
        space = replace(space, cases=self.cases)
        return self.run_list("grid", space, space.grid())


class Random(OwnSweeper):
    """Settings drawn at random.

    Args:
        params: settings and their values.
        n_trials: how many different settings; each runs with every listed `seed`.
        seed: of the drawing.

    Raises:
        UserError: a number is none.
    """

    def __init__(self, params: Any, n_trials: int, seed: int) -> None:
        super().__init__(params)
        if type(n_trials) is not int or n_trials < 1:
            raise UserError("hydra.sweeper.n_trials", n_trials, "must be a whole number of at least 1")
        if type(seed) is not int:
            raise UserError("hydra.sweeper.seed", seed, "must be a whole number")
        self.n_trials, self.seed = n_trials, seed

    def search(self, space: spaces.Space) -> Any:
        """Run the draws."""
        return self.run_list(f"random, seed {self.seed}", space, space.sample(self.n_trials, self.seed))


class Optuna(OwnSweeper):
    """Optuna's search: a setting is asked for when a slot is free, trials that fall behind the others stop early.

    Args:
        params: settings and their values.
        n_trials: how many trials.
        objectives: metric names and `max` or `min`; None for the run's own `monitor`.
        sampler: `tpe`, `random`, or `_target_`, a class of `optuna.samplers`, with its arguments.
        startup_trials: trials at random before TPE models anything.
        seed: of the sampler.
        pruner: `kind` (`median`, `hyperband`, None, or `_target_`, a class of `optuna.pruners`, with its arguments),
            `startup`, `warmup`, `reduction`.

    Raises:
        UserError: Optuna is not installed, or it would refuse a value.
    """

    def __init__(
        self,
        params: Any,
        n_trials: int,
        objectives: Any,
        sampler: Any,
        startup_trials: int,
        seed: int,
        pruner: Any,
    ) -> None:
        from recur.sweeps import study

        super().__init__(params)
        study.require()
        given = _mapping("hydra.sweeper.objectives", objectives, "metric names with max or min", "{val/f1: max}")
        objectives = {str(name): str(mode) for name, mode in given.items()}
        rule = study.Pruner.of(_plain(pruner) or {})
        self.settings = study.SearchSettings(objectives, n_trials, _plain(sampler), startup_trials, seed, rule)

    def search(self, space: spaces.Space) -> Any:
        """Check the ends of the space, then let the study choose."""
        from recur.sweeps import study

        launcher = self.launcher
        if not space.dimensions:
            raise UserError(
                "hydra/sweeper=optuna",
                rule="has nothing to search",
                remedy="give settings with several values, as in optimizer.lr=1e-3,1e-2",
            )
        spaces.check_count(self.settings.n_trials)
        probes = [launcher.job(number, row) for number, row in enumerate(study.probes(space))]
        checked = launcher.plan_of_list("optuna", probes, space.as_record())
        settings = self._with_objectives(checked, launcher.compose(0, probes[0].overrides))
        settings.check(space)
        objectives = dict(settings.objectives)
        monitor, mode = next(iter(objectives.items()))
        total = settings.n_trials
        plan = Plan("optuna", checked.space, total, monitor, mode, tuple(space.fixed.values()), objectives)
        source = study.Trials(launcher.folder, space, launcher.job, settings, launcher.known_jobs())
        executor = launcher.executor([job.needs for job in probes], total)
        outcomes = launcher.run(source, plan, executor, lambda: launcher.check_new_folders(probes[0], total))
        leave(outcomes, plan.total, launcher.command_again, replaced=True)
        return {number: outcome.value for number, outcome in outcomes.items()}

    def _with_objectives(self, checked: Plan, config: DictConfig) -> Any:
        """The settings of the study, with the runs' own metric where no objectives are given.

        Raises:
            UserError: an objective that no run writes, or none without the test split; pruning by another than the one.
        """
        objectives = dict(self.settings.objectives) or {checked.monitor: checked.mode}
        family = family_of(str(OmegaConf.select(config, "model._target_", default="")))
        for name, mode in objectives.items():
            check_metric(name, family, resources=True, key="hydra.sweeper.objectives")
            better = f"set hydra.sweeper.objectives={{{name}: {direction(name)}}}"
            check_direction(name, mode, f"hydra.sweeper.objectives.{name}", better)
            if name.startswith("test/") and config.get("test") is False:
                rule = f"wants {name}, and with test=false no run writes it"
                raise UserError("hydra.sweeper.objectives", rule=rule, remedy="set test=true, or choose a val/ metric")
            kind = OmegaConf.select(config, "data.tokenizer.kind")
            if name.endswith("/bpc") and kind not in (None, "character"):
                rule = f"wants {name}, which is written only where a token is a character"
                raise UserError("hydra.sweeper.objectives", rule=rule, remedy="choose val/loss")
        if self.settings.pruner.kind is not None and (len(objectives) > 1 or checked.monitor not in objectives):
            raise UserError(
                "",
                rule=f"pruning needs {checked.monitor} as the one objective, got {', '.join(objectives)}",
                remedy="set hydra.sweeper.pruner.kind=null",
            )
        return replace(self.settings, objectives=objectives)


def _mapping(key: str, given: Any, what: str, example: str) -> dict[Any, Any]:
    """A setting that holds names and values, empty for None.

    Raises:
        UserError: it is something else.
    """
    given = _plain(given)
    if given is not None and not isinstance(given, dict):
        raise UserError(key, given, f"must be {what}", f"as in {key}={example}")
    return given or {}


def _plain(settings: Any) -> Any:
    """Settings as plain containers."""
    return OmegaConf.to_container(settings, resolve=True) if OmegaConf.is_config(settings) else settings
