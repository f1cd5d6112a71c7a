"""Where Hydra finds the sweepers of recur.

Hydra imports this file in every run, so the sweepers themselves (`recur.sweeps`) are imported when one is used.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.recur_sweeps.deferred import make


class _DeferredSweeper(Sweeper):
    """Makes the sweeper named by `target` when Hydra sets it up."""

    target = ""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._sweeper: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._sweeper = make(self.target, "hydra.sweeper", self._settings)
        self._sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        return self._sweeper.sweep(arguments)


class Grid(_DeferredSweeper):
    """`hydra/sweeper=grid`."""

    target = "recur.sweeps.sweeper.Grid"


class Random(_DeferredSweeper):
    """`hydra/sweeper=random`."""

    target = "recur.sweeps.sweeper.Random"


class Optuna(_DeferredSweeper):
    """`hydra/sweeper=optuna`."""

    target = "recur.sweeps.sweeper.Optuna"
