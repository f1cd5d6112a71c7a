"""Executors beyond one machine: Ray and SLURM place, queue and restart the same jobs.

The sweep's folder must be the same path on every machine. A job that is started a second time, because its machine was
lost, goes on from its own last checkpoint.
"""

import contextlib
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recur.errors import UserError
from recur.runs.extras import require_extra
from recur.sweeps.job import Job, Needs, perform
from recur.sweeps.launcher import FreshProcessLauncher
from recur.sweeps.local import thread_environment
from recur.sweeps.runner import Executor, FullError

_START = "start one with `ray start --head`"


def _serve(job: Job, cwd: str, threads: int, granted: Mapping[str, str], grace: float) -> int:
    """Run a job on whatever machine this is, each of its processes with so many threads."""
    os.chdir(cwd)
    return perform(job, {**thread_environment(threads), **granted}, grace)


class Requeued:
    """`_serve` for submitit, which asks SLURM to start a job again whose time is up: the job then goes on.

    Without `checkpoint` submitit gives such a job up.
    """

    def __call__(self, job: Job, cwd: str, threads: int, granted: Mapping[str, str], grace: float) -> int:
        """Run a job on whatever machine this is."""
        return _serve(job, cwd, threads, granted, grace)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit starts in the end: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


@dataclass(frozen=True)
class Share:
    """The part of a cluster that one job takes."""

    gpus: float
    cpus: int

    def threads(self, needs: Needs) -> int:
        """CPU threads for each process of a job that takes this part."""
        return max(1, self.cpus // needs.processes(math.ceil(self.gpus)))

    def __str__(self) -> str:
        """`2 GPU(s), 4 CPU(s)`."""
        return f"{self.gpus:g} GPU(s), {self.cpus} CPU(s)"


def share(needs: Sequence[Needs], gpus_per_job: Any, cpus_per_job: int) -> Share:
    """What a job takes: `gpus_per_job=auto` means what `trainer` asks for.

    Raises:
        UserError: a count makes no sense or is less than a job wants, or nothing says whether the jobs want GPUs.
    """
    if type(cpus_per_job) is not int or cpus_per_job < 1:
        raise UserError("hydra.launcher.cpus_per_job", cpus_per_job, "must be a whole number of at least 1")
    if gpus_per_job != "auto":
        if type(gpus_per_job) not in (int, float) or not 0 <= gpus_per_job < math.inf:
            raise UserError("hydra.launcher.gpus_per_job", gpus_per_job, "must be auto or a number of at least 0")
        # With `trainer.accelerator=auto` and no GPU, `trainer.devices` counts processes on the CPU.
        on_gpu = ("gpu", "auto") if gpus_per_job else ("gpu",)
        most = max((need.devices or 1 for need in needs if need.accelerator in on_gpu), default=0)
        if math.ceil(gpus_per_job) < most:
            rule = f"must be at least {most}, the GPUs that trainer asks for"
            raise UserError("hydra.launcher.gpus_per_job", gpus_per_job, rule, "or set trainer.devices or trainer=cpu")
        return Share(gpus_per_job, cpus_per_job)
    if any(need.accelerator == "auto" for need in needs):
        raise UserError(
            "hydra.launcher.gpus_per_job", gpus_per_job, "must be a number where trainer.accelerator=auto",
            "set it, 0 for CPUs; or set trainer=gpu or trainer=cpu",
        )  # fmt: skip
    if any(need.accelerator == "gpu" and need.spread for need in needs):
        raise UserError(
            "hydra.launcher.gpus_per_job", gpus_per_job, "must be a number where trainer=ddp takes all GPUs there are",
            "set it, or trainer.devices",
        )  # fmt: skip
    wanted = [need.devices or 1 for need in needs if need.accelerator == "gpu"]
    return Share(max(wanted, default=0), cpus_per_job)


def _check_port(address: str | None) -> None:
    """Try a cluster's port, since Ray itself would try for many minutes.

    Raises:
        UserError: there is no server.
    """
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError("", rule=f"there is no Ray cluster at {address} ({error})", remedy=_START) from None


class Ray:
    """Jobs on a Ray cluster; Ray decides where, and starts a job again whose machine was lost.

    Args:
        address: of the cluster; `auto` for the one this machine belongs to, None to start one on this machine alone.
        part: what one job takes.
        retries: times that Ray starts a lost job again.
        grace: seconds a job has to end by itself where Ray ends its worker gently; a stopped sweep's it kills at once.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or a job is larger than the cluster.
    """

    def __init__(self, address: str | None, part: Share, retries: int, grace: float = 10.0) -> None:
        if type(retries) is not int or retries < 0:
            raise UserError("hydra.launcher.retries", retries, "must be a whole number of at least 0")
        if not isinstance(address, (str, type(None))):
            raise UserError("hydra.launcher.address", address, "must be HOST:PORT, auto or null")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns about what is to come
        ray = require_extra("ray", "ray", "hydra/launcher=ray")
        self._ray, self._part, self._grace = ray, part, grace
        self._ours = not ray.is_initialized()
        if self._ours:
            _check_port(address)
            extra = {} if address else {"include_dashboard": False}
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False, **extra)
            except ConnectionError as error:
                raise UserError("", rule=f"there is no Ray cluster at {address} ({error})", remedy=_START) from None
        options = {"num_cpus": part.cpus, "num_gpus": part.gpus, "max_retries": retries}
        self._serve = ray.remote(**options)(_serve)
        self._running: dict[Any, Job] = {}
        self._seen = (0.0, 0)
        if not self._capacity():
            have = {name: n for name, n in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            self.close()
            raise UserError(
                "", rule=f"a job wants {part}, no node of the Ray cluster has as much; all together have {have}"
            )

    def _capacity(self) -> int:
        """Jobs that fit the cluster as it is now."""
        if time.monotonic() - self._seen[0] < 1:
            return self._seen[1]
        fit = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                fits = [have.get("CPU", 0) / self._part.cpus]
                if self._part.gpus:
                    fits.append(have.get("GPU", 0) / self._part.gpus)
                fit += math.floor(min(fits) + 1e-9)
        self._seen = (time.monotonic(), fit)
        return fit

    @property
    def capacity(self) -> int:
        """Jobs at a time."""
        return max(1, self._capacity())

    @property
    def title(self) -> str:
        """The cluster, in words."""
        nodes = sum(node["Alive"] for node in self._ray.nodes())
        return f"Ray, {nodes} node(s), {self.capacity} job(s) at a time of {self._part}"

    def has_capacity(self) -> bool:
        """Whether the cluster, used by nobody else, could run another job; otherwise the job waits in Ray's queue."""
        return len(self._running) < self.capacity

    def start(self, job: Job) -> str:
        """Submit a job to Ray."""
        granted = {} if self._part.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        reference = self._serve.remote(job, os.getcwd(), self._part.threads(job.needs), granted, self._grace)
        self._running[reference] = job
        return "ray"

    def finished(self) -> list[tuple[Job, int]]:
        """Jobs that ended."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        ended = []
        for reference in ready:
            job = self._running.pop(reference)
            try:
                ended.append((job, int(self._ray.get(reference))))
            except self._ray.exceptions.RayError as error:
                with contextlib.suppress(OSError), job.open_log() as log:
                    print(f"Ray: {str(error).splitlines()[0]}", file=log)
                ended.append((job, 1))
        return ended

    def wait(self, seconds: float) -> None:
        """Ray reports when a job ends."""
        if self._running:
            self._ray.wait(list(self._running), num_returns=1, timeout=seconds)

    def stop(self) -> None:
        """Cancel the jobs; their supervisors end with Ray's workers."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=20)

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        if self._ours:
            self._ray.shutdown()


class Submitit:
    """Jobs on SLURM through submitit; each is a SLURM job of its own, which the queue starts.

    Args:
        folder: of the sweep; submitit's own files go into `.submitit` there.
        cluster: `slurm`, or `local` to try it without one.
        part: what one job takes.
        at_once: jobs queued or running at a time.
        parameters: further settings for submitit: `slurm_partition`, `timeout_min`, `mem_gb`, ...
        grace: seconds a cancelled job has to end by itself, as far as the queue waits so long.

    Raises:
        UserError: submitit is not installed, there is no SLURM here, or it does not know a parameter.
    """

    def __init__(
        self, folder: Path, cluster: str, part: Share, at_once: int, parameters: Mapping[str, Any], grace: float = 10.0
    ) -> None:
        submitit = require_extra("slurm", "submitit", "hydra/launcher=submitit_slurm")
        if type(at_once) is not int or at_once < 1:
            raise UserError("hydra.launcher.jobs_at_once", at_once, "must be a whole number of at least 1")
        self.capacity, self._part, self._grace = at_once, part, grace
        self._folder = (folder / ".submitit").absolute()
        try:
            self._executor = submitit.AutoExecutor(str(self._folder), cluster=cluster)
            given = {key: value for key, value in parameters.items() if value is not None}
            self._executor.update_parameters(
                gpus_per_node=math.ceil(part.gpus), cpus_per_task=part.cpus, tasks_per_node=1, nodes=1, **given
            )
        except (RuntimeError, TypeError, NameError, ValueError) as error:
            raise UserError("submitit", rule=f"refuses: {' '.join(str(error).split())}") from None
        self._cluster = cluster
        self._running: list[tuple[Job, Any]] = []
        self._full = False  # the queue has refused a job, by a limit on how many there may be

    @property
    def title(self) -> str:
        """The queue, in words."""
        return f"submitit on {self._cluster}, {self.capacity} job(s) at a time of {self._part}"

    def has_capacity(self) -> bool:
        """Whether another job may be queued."""
        return len(self._running) < self.capacity and not self._full

    def start(self, job: Job) -> str:
        """Queue a job.

        Raises:
            FullError: the queue refuses it while it has others.
            UserError: it refuses it though it has none.
        """
        granted = {} if self._part.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        try:
            threads = self._part.threads(job.needs)
            queued = self._executor.submit(Requeued(), job, os.getcwd(), threads, granted, self._grace)
        except RuntimeError as error:  # of submitit's, which a refused `sbatch` raises
            if self._running:
                self._full = True
                raise FullError from error
            said = " ".join(str(error).split())
            again = f"go on with resume={self._folder.parent} when it takes jobs"
            raise UserError("", rule=f"the queue refuses job {job.number} ({said})", remedy=again) from None
        self._running.append((job, queued))
        return f"{self._cluster} {queued.job_id}"

    def finished(self) -> list[tuple[Job, int]]:
        """Jobs that ended."""
        ended = [(job, queued) for job, queued in self._running if queued.done()]
        self._running = [(job, queued) for job, queued in self._running if not any(queued is q for _, q in ended)]
        self._full = self._full and not ended
        return [(job, self._code(job, queued)) for job, queued in ended]

    def _code(self, job: Job, queued: Any) -> int:
        error = queued.exception()
        if error is None:
            return int(queued.result())
        with contextlib.suppress(OSError), job.open_log() as log:
            print(f"submitit {queued.job_id}: {str(error).strip().splitlines()[-1]}", file=log)
        return 1

    def wait(self, seconds: float) -> None:
        """The queue reports nothing by itself: look again soon."""
        time.sleep(min(seconds, 0.2))

    def stop(self) -> None:
        """Cancel what is queued or runs; wait a little until it is gone."""
        for _, queued in self._running:
            queued.cancel(check=False)
        until = time.monotonic() + self._grace + 5
        while time.monotonic() < until and not all(queued.done(force_check=True) for _, queued in self._running):
            time.sleep(0.5)

    def close(self) -> None:
        """There is nothing to free."""


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
        snapshot: bool = True,
    ) -> None:
        super().__init__(fail_fast, grace_seconds, snapshot)
        self.address, self.retries = address, retries
        self.gpus_per_job, self.cpus_per_job = gpus_per_job, cpus_per_job

    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """The cluster."""
        return Ray(self.address, share(needs, self.gpus_per_job, self.cpus_per_job), self.retries, self.grace)


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
        snapshot: bool = True,
    ) -> None:
        super().__init__(fail_fast, grace_seconds, snapshot)
        if not isinstance(parameters, (Mapping, type(None))):
            raise UserError("hydra.launcher.parameters", parameters, "must be settings of submitit with their values")
        self.cluster, self.jobs_at_once, self.parameters = cluster, jobs_at_once, dict(parameters or {})
        self.gpus_per_job, self.cpus_per_job = gpus_per_job, cpus_per_job

    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """The queue."""
        part = share(needs, self.gpus_per_job, self.cpus_per_job)
        return Submitit(self.folder, self.cluster, part, self.jobs_at_once, self.parameters, self.grace)
