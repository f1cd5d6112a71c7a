"""Where Hydra finds the launchers of recur; what they do is in `recur.sweeps`."""

from collections.abc import Sequence
from typing import Any

from recur.sweeps.job import Needs
from recur.sweeps.launcher import FreshProcessLauncher
from recur.sweeps.local import Machine, SlotSettings, plan
from recur.sweeps.remote import Ray, Submitit, share
from recur.sweeps.runner import Executor


class SlotLauncher(FreshProcessLauncher):
    """`hydra/launcher=slots`: GPUs, or shares of the CPU, of this machine."""

    def __init__(
        self,
        gpus: Any,
        gpus_per_job: Any,
        jobs_per_gpu: int,
        cpu_slots: Any,
        threads: Any,
        fail_fast: bool,
        grace_seconds: float,
    ) -> None:
        super().__init__(fail_fast, grace_seconds)
        self.settings = SlotSettings(gpus, gpus_per_job, jobs_per_gpu, cpu_slots, threads)

    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """The slots of this machine."""
        return Machine(plan(self.settings, needs, jobs), self.grace)


class RayLauncher(FreshProcessLauncher):
    """`hydra/launcher=ray`: a Ray cluster."""

    remote = True

    def __init__(
        self,
        address: str | None,
        gpus_per_job: Any,
        cpus_per_job: int,
        retries: int,
        fail_fast: bool,
        grace_seconds: float,
    ) -> None:
        super().__init__(fail_fast, grace_seconds)
        self.address, self.retries = address, retries
        self.gpus_per_job, self.cpus_per_job = gpus_per_job, cpus_per_job

    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """The cluster."""
        return Ray(self.address, share(needs, self.gpus_per_job, self.cpus_per_job), self.retries)


class SubmititLauncher(FreshProcessLauncher):
    """`hydra/launcher=submitit_slurm`: SLURM's queue."""

    remote = True

    def __init__(
        self,
        cluster: str,
        jobs_at_once: int,
        gpus_per_job: Any,
        cpus_per_job: int,
        parameters: Any,
        fail_fast: bool,
        grace_seconds: float,
    ) -> None:
        super().__init__(fail_fast, grace_seconds)
        self.cluster, self.jobs_at_once, self.parameters = cluster, jobs_at_once, dict(parameters or {})
        self.gpus_per_job, self.cpus_per_job = gpus_per_job, cpus_per_job

    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """The queue."""
        part = share(needs, self.gpus_per_job, self.cpus_per_job)
        return Submitit(self.folder, self.cluster, part, self.jobs_at_once, self.parameters)
