"""Slots: the places on this machine where one job at a time can run, and the executor that fills them.

A slot is some GPUs, or a share of the CPU's threads. What it grants is put into a job's environment before the job's
process starts, since CUDA reads these variables once, when a process first uses it.
"""

import contextlib
import itertools
import math
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recur.errors import UserError
from recur.sweeps.job import Job, Needs, start_supervised
from recur.sweeps.launcher import FreshProcessLauncher
from recur.sweeps.runner import Executor

_NAMES_GPU = re.compile(r"\d|GPU-|MIG-")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """A place for one job.

    Attributes:
        number: from 0.
        devices: what `CUDA_VISIBLE_DEVICES` will say; empty for a CPU slot.
        threads: CPU threads for the whole job.
    """

    number: int
    devices: tuple[str, ...]
    threads: int

    @property
    def name(self) -> str:
        """`gpu 0,1` or `cpu 3`."""
        return f"gpu {','.join(self.devices)}" if self.devices else f"cpu {self.number}"

    def environment(self, ranks: int) -> dict[str, str]:
        """Variables that grant this slot to a job of so many processes."""
        own = {"CUDA_VISIBLE_DEVICES": ",".join(self.devices), **thread_environment(max(1, self.threads // ranks))}
        if self.devices and "CUDA_VISIBLE_DEVICES" not in os.environ:  # the numbers are nvidia-smi's, by bus
            own["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        return own


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that hold one process to so many threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def cores() -> int:
    """CPU cores this process may use: those it may run on, within its container's quota and its job's share."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("SLURM_CPUS_ON_NODE", "")
    limits = [cgroup_quota(), int(share) if share.isdecimal() else math.inf]
    return max(1, int(min(count, *limits)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores' worth of time that this process's control groups (version 2) grant it, infinity where they set no limit.

    Args:
        root: where they are mounted.
        own: says which is this process's.
    """
    try:
        path = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        path = "/"
    place, limits = root / path.strip("/"), [math.inf]
    for folder in (place, *place.parents):
        if not folder.is_relative_to(root):
            break
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            limits.append(int(quota) / int(period))  # `max` is no number
    return min(limits)


def _threads(settings: "SlotSettings", slots: int) -> int:
    if settings.threads != "auto":
        return int(settings.threads)
    share, limit = max(1, cores() // slots), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdecimal() and int(limit) > 0 else share  # a user's lower limit counts


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """GPUs this process may use, as `CUDA_VISIBLE_DEVICES` names them; none of them is touched.

    CUDA sees none of those behind a word that names no GPU, such as `-1` or `NoDevFiles`.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return list(itertools.takewhile(_NAMES_GPU.match, map(str.strip, listed.split(","))))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", done.stdout, re.MULTILINE)  # between them stand the parts of those that have MIG


@dataclass(frozen=True)
class SlotSettings:
    """The keys of `conf/hydra/launcher/slots.yaml`."""

    gpus: Any = "auto"
    gpus_per_job: int | str = "auto"
    jobs_per_gpu: int = 1
    cpu_slots: int | str = "auto"
    threads: int | str = "auto"


def plan(settings: SlotSettings, needs: Sequence[Needs], jobs: int | None = None) -> list[Slot]:
    """The slots of this machine for jobs with these needs.

    Args:
        settings: the launcher's keys.
        needs: of every job known so far; at least one.
        jobs: how many there will be, None for not known.

    Raises:
        UserError: more GPUs are asked for than there are, or a count is not positive.
    """
    for name in ("gpus_per_job", "jobs_per_gpu", "cpu_slots", "threads"):
        value = getattr(settings, name)
        if value != "auto" and (type(value) is not int or value < 1):
            raise UserError(f"hydra.launcher.{name}", value, "must be a whole number of at least 1")
    listed = isinstance(settings.gpus, Sequence) and not isinstance(settings.gpus, str)
    if settings.gpus != "auto" and not listed and (type(settings.gpus) is not int or settings.gpus < 0):
        raise UserError("hydra.launcher.gpus", settings.gpus, "must be auto, a count or a list of ids")
    if any(need.accelerator == "gpu" for need in needs):
        gpus = _chosen_gpus(settings)
        if not gpus:
            raise UserError(
                "",
                rule="trainer.accelerator=gpu, but no GPU is visible here",
                remedy="set trainer=cpu, or look at CUDA_VISIBLE_DEVICES",
            )
    elif any(need.accelerator == "auto" for need in needs):
        gpus = _chosen_gpus(settings)
    else:
        gpus = []
    if gpus and settings.cpu_slots != "auto":
        raise UserError(
            "hydra.launcher.cpu_slots", settings.cpu_slots, "is for jobs on CPUs, these run on GPUs",
            "set trainer=cpu or hydra.launcher.gpus=0, or leave it out",
        )  # fmt: skip
    if not gpus and (
        settings.gpus not in ("auto", 0, []) or settings.gpus_per_job != "auto" or settings.jobs_per_gpu != 1
    ):
        cpu = all(need.accelerator == "cpu" for need in needs)
        why = "these run with trainer.accelerator=cpu" if cpu else "no GPU is used here"
        raise UserError("", rule=f"hydra.launcher.gpus, gpus_per_job and jobs_per_gpu need jobs on GPUs; {why}")
    return _gpu_slots(settings, needs, gpus) if gpus else _cpu_slots(settings, needs, jobs)


def _chosen_gpus(settings: SlotSettings) -> list[str]:
    visible, wanted = visible_gpus(), settings.gpus
    if wanted == "auto":
        return visible
    if isinstance(wanted, int):
        if wanted > len(visible):
            raise UserError("", rule=f"hydra.launcher.gpus={wanted}, but {_there_are(visible)}")
        return visible[:wanted]
    ids = [str(word) for word in wanted]
    if len(set(ids)) < len(ids):
        remedy = "name each once; hydra.launcher.jobs_per_gpu=2 lets two jobs share each"
        raise UserError("hydra.launcher.gpus", list(wanted), "names a GPU twice", remedy)
    missing = [word for word in ids if word not in visible]
    if missing:
        raise UserError("", rule=f"hydra.launcher.gpus names GPU {', '.join(missing)}, but {_there_are(visible)}")
    return ids


def _there_are(visible: list[str]) -> str:
    return f"only GPU {', '.join(visible)} can be seen here" if visible else "no GPU can be seen here"


def _gpu_slots(settings: SlotSettings, needs: Sequence[Needs], gpus: list[str]) -> list[Slot]:
    most = max(need.devices or 1 for need in needs)
    per_job = most if settings.gpus_per_job == "auto" else int(settings.gpus_per_job)
    if per_job > len(gpus):
        cause = (
            f"trainer.devices={most}" if settings.gpus_per_job == "auto" else f"hydra.launcher.gpus_per_job={per_job}"
        )
        raise UserError("", rule=f"{cause}: a job wants {per_job} GPUs, but {_there_are(gpus)}")
    if most > per_job:
        raise UserError("", rule=f"trainer.devices={most} does not fit into hydra.launcher.gpus_per_job={per_job}")
    groups = [tuple(gpus[i : i + per_job]) for i in range(0, len(gpus) - per_job + 1, per_job)]
    places = [group for _ in range(settings.jobs_per_gpu) for group in groups]  # an empty GPU before a shared one
    threads = _threads(settings, len(places))
    return [Slot(number, devices, threads) for number, devices in enumerate(places)]


def _cpu_slots(settings: SlotSettings, needs: Sequence[Needs], jobs: int | None) -> list[Slot]:
    ranks = max(need.ranks for need in needs)
    if settings.cpu_slots == "auto":
        count = max(1, cores() // ranks)
        count = min(count, jobs) if jobs else count
    else:
        count = int(settings.cpu_slots)
    return [Slot(number, (), _threads(settings, count)) for number in range(count)]


@dataclass
class Machine:
    """The executor of this machine: a free slot takes the next job at once.

    Attributes:
        slots: the places.
        grace: seconds a stopped job has to end by itself.
    """

    slots: Sequence[Slot]
    grace: float = 10.0
    busy: dict[int, tuple[Job, "subprocess.Popen[bytes]"]] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """Jobs at a time."""
        return len(self.slots)

    @property
    def title(self) -> str:
        """What the slots are, in words."""
        kind = "GPU" if self.slots[0].devices else "CPU"
        each = f"{len(self.slots[0].devices)} GPU(s), " if self.slots[0].devices else ""
        return f"{len(self.slots)} {kind} slot(s), {each}{self.slots[0].threads} thread(s) each"

    def has_capacity(self) -> bool:
        """Whether a slot is free."""
        return len(self.busy) < len(self.slots)

    def start(self, job: Job) -> str:
        """Start a job in the first free slot; return the slot's name."""
        slot = next(slot for slot in self.slots if slot.number not in self.busy)
        granted = slot.environment(job.needs.processes(len(slot.devices)))
        self.busy[slot.number] = (job, start_supervised(job, granted, self.grace))
        return slot.name

    def finished(self) -> list[tuple[Job, int]]:
        """Jobs that ended since the last call, with their exit codes."""
        ended = [
            (number, job, process)
            for number, (job, process) in self.busy.items()
            # A supervisor that was killed leaves a job that may still run: the slot is not free yet.
            if process.poll() is not None and not (process.returncode < 0 and job.lives())
        ]
        for number, _, process in ended:
            assert process.stdin is not None
            process.stdin.close()
            del self.busy[number]
        return [(job, process.returncode) for _, job, process in ended]

    def wait(self, seconds: float) -> None:
        """Sleep until a supervisor ends: its end of the pipe closes then, which `poll` reports at once."""
        ends = select.poll()
        for _, process in self.busy.values():
            if process.poll() is None:
                assert process.stdin is not None
                ends.register(process.stdin, 0)
            else:
                seconds = min(seconds, 0.2)
        if ends.poll(1000 * seconds):
            time.sleep(0.001)  # its exit code comes a moment later

    def stop(self) -> None:
        """End every job: SIGTERM first, SIGKILL later."""
        for _, process in self.busy.values():
            process.terminate()
        for _, process in self.busy.values():
            try:
                process.wait(self.grace + 5)
            except subprocess.TimeoutExpired:
                print(f"recur: process {process.pid} would not end", file=sys.stderr)
            assert process.stdin is not None
            process.stdin.close()  # closing the pipe ends whatever is left

    def close(self) -> None:
        """There is nothing to free."""


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
        snapshot: bool = True,
    ) -> None:
        super().__init__(fail_fast, grace_seconds, snapshot)
        self.settings = SlotSettings(gpus, gpus_per_job, jobs_per_gpu, cpu_slots, threads)

    def executor(self, needs: Sequence[Needs], jobs: int) -> Executor:
        """The slots of this machine."""
        return Machine(plan(self.settings, needs, jobs), self.grace)
