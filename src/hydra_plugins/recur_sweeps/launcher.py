"""Where Hydra finds the launchers of recur.

Hydra imports this file in every run, so the launchers themselves (`recur.sweeps`) are imported when one is used.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.recur_sweeps.deferred import make


class _DeferredLauncher(Launcher):
    """Makes the launcher named by `target` when Hydra sets it up.

    Attributes:
        launcher: the launcher itself, None before.
    """

    target = ""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.launcher: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher = make(self.target, "hydra.launcher", self._settings)
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        results: Sequence[JobReturn] = self.launcher.launch(job_overrides, initial_job_idx)
        return results


class SlotLauncher(_DeferredLauncher):
    """`hydra/launcher=slots`."""

    target = "recur.sweeps.local.SlotLauncher"


class RayLauncher(_DeferredLauncher):
    """`hydra/launcher=ray`."""

    target = "recur.sweeps.remote.RayLauncher"


class SubmititLauncher(_DeferredLauncher):
    """`hydra/launcher=submitit_slurm`."""

    target = "recur.sweeps.remote.SubmititLauncher"
