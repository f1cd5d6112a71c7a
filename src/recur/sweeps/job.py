"""A job: one run of a command in a process of its own, in run mode, started by a command that anyone can type."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from recur.config.words import quoted
from recur.errors import UserError
from recur.runs import marks
from recur.runs.checkpoint import to_resume
from recur.runs.files import naming, open_inside
from recur.runs.folder import clear
from recur.runs.metrics import read_record
from recur.runs.trust import must_be_typed
from recur.sweeps.locks import HeldError, Lock
from recur.sweeps.snapshot import Code

_TAIL = 1 << 16  # bytes
PERFORMED = 75  # exit code of a second performer of a job
# Seconds in which the processes of a job are gone whose sweep or machine was lost, and a file server's leases with them
_SOON = 120.0
TRIAL = "RECUR_TRIAL"  # JSON for a job of an Optuna sweep: the journal, the trial's number, the pruner
# Variables of a former or surrounding process that would make a fresh one take itself for a rank of another run.
_LEAKS = re.compile(
    r"^((LOCAL_|GROUP_|NODE_|ROLE_)?(RANK|WORLD_SIZE)|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_.*|PL_GLOBAL_SEED|PL_SEED_WORKERS|SLURM_.*|OMPI_.*|PMIX?_.*|JSM_.*|HYDRA_MAIN_MODULE|RECUR_TRIAL|RECUR_PRECISION)$"
)


@dataclass(frozen=True)
class Needs:
    """The devices and processes that a job needs.

    Attributes:
        accelerator: `cpu`, `gpu` or `auto`.
        devices: how many GPUs, None for whatever the place has.
        ranks: processes it will start by itself.
        spread: whether it is meant for all the GPUs that there are, as `trainer=ddp` is.
    """

    accelerator: str = "auto"
    devices: int | None = None
    ranks: int = 1
    spread: bool = False

    def processes(self, gpus: int) -> int:
        """How many processes the job starts where it is given so many GPUs."""
        counted = self.devices is not None or self.accelerator == "cpu"
        return self.ranks if counted else max(self.ranks, gpus)


@dataclass(frozen=True)
class SweepId:
    """Which sweep a job belongs to.

    Attributes:
        folder: the sweep's folder.
        key: 32 hexadecimal digits, chosen when the sweep began; its journal and the marks of its jobs have it.
    """

    folder: Path
    key: str


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        number: from 0; the name of its folder unless `hydra.sweep.subdir` says otherwise.
        overrides: what is typed after `python -m recur.train`.
        folder: where it runs, inside the sweep's folder.
        sweep: the sweep it belongs to.
        needs: devices and processes.
        monitor: the metric by which it is compared.
        module: the command.
        flags: Hydra's flags for the command.
        environment: further variables.
        retyped: settings that a run's own config may not say by itself; a job that goes on types them again.
        code: the snapshot that it imports from; None for the code as it is when the job starts.
        objectives: every metric that a search wants of it; empty for `monitor` alone.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    sweep: SweepId
    needs: Needs = field(default_factory=Needs)
    monitor: str = ""
    module: str = "recur.train"
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    retyped: tuple[str, ...] = ()
    code: Code | None = None
    objectives: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """All the job printed."""
        return self.folder / "output.log"

    def open_log(self) -> TextIO:
        """That file, to add to; a link in its place is not followed."""
        file = open_inside(self.folder, self.log.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(file, "a", encoding="utf-8")

    @property
    def lock(self) -> Path:
        """The file that is locked while the job's processes run."""
        return self.sweep.folder / ".locks" / str(self.number)

    @property
    def mark(self) -> marks.Mark:
        """The mark that its folder carries."""
        return marks.Mark(self.sweep.key, self.number, tuple(self.overrides))

    def record(self) -> dict[str, Any] | None:
        """Its `metrics.json`, which it writes last; None before, and where the folder is of another job."""
        return read_record(self.folder) if marks.read_mark(self.folder) == self.mark else None

    def check_folder(self) -> None:
        """Refuse a folder that this job may not clear.

        Raises:
            UserError: it lies outside the sweep's folder, or it exists and this job did not make it.
        """
        root, inner = self.sweep.folder.resolve(), self.folder.resolve()
        if self.folder.is_symlink() or root not in inner.parents or inner.relative_to(root).parts[0].startswith("."):
            raise UserError(
                "hydra.sweep.subdir",
                str(self.folder),
                f"must name a folder inside {self.sweep.folder}",
                "leave it at ${hydra.job.num}",
            )
        if not os.path.lexists(self.folder):
            return
        mark = marks.read_mark(self.folder)
        if mark == self.mark or (self.folder.is_dir() and marks.holds_nothing(self.folder)):
            return
        what = "exists and is not a job of this sweep"
        if mark is not None and mark.sweep == self.sweep.key:
            what = f"is job {mark.job} of this sweep with other settings ({' '.join(mark.overrides)})"
        raise UserError(
            str(self.folder), rule=what, remedy="name another folder with hydra.sweep.dir=..., or move this one away"
        )

    def command(self) -> list[str]:
        """What to type: a fresh run, or one that goes on from its own last checkpoint."""
        start = [sys.executable, "-m", self.module]
        if self.can_continue():
            # What a run folder's config may not name by itself (`recur.runs.trust`) is said again.
            own = [*self.retyped, *(text for text in self.overrides if must_be_typed(text))]
            return [*start, f"resume={quoted(str(self.folder))}", *[f"++{text.lstrip('+~')}" for text in own]]
        flags = self.flags if self.code is None else self.code.flags(self.flags)
        return [*start, *flags, *self.overrides, f"hydra.run.dir={quoted(str(self.folder))}"]

    def can_continue(self) -> bool:
        """Whether it ran before and left a whole checkpoint to go on from."""
        if not (self.folder / ".hydra" / "config.yaml").is_file():
            return False
        try:
            return bool(to_resume(self.folder))
        except ValueError as error:  # there is none, or it is damaged: the job begins anew
            if isinstance(error.__cause__, OSError):  # what cannot be read just now is not to be replaced
                raise error.__cause__ from None
            return False

    def prepare(self) -> None:
        """Make and mark its folder; where it ran before and left nothing to go on from, remove what it wrote.

        Raises:
            UserError: the folder is not this job's.
        """
        self.check_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        if marks.read_mark(self.folder) is None:
            marks.write_mark(self.folder, self.mark)
        # Where somebody typed the job's command by hand, and that run lives, this one will be refused by itself
        if not self.can_continue() and not _is_held(self.folder / ".lock"):
            clear(self.folder, marked=False)
            self.log.unlink(missing_ok=True)
        self.lock.parent.mkdir(parents=True, exist_ok=True)

    def lives(self) -> bool:
        """Whether any of its processes runs, by the lock that they hold."""
        return _is_held(self.lock)

    def last_line(self) -> str:
        """The last line it printed."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))  # a job may print gigabytes
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def _is_held(lock: Path) -> bool:
    """Whether a process holds a lock; False where there is none."""
    if not lock.is_file() or lock.is_symlink():
        return False
    try:
        with Lock(lock, timeout=0):
            return False
    except HeldError:
        return True


def clean_environment(added: Mapping[str, str], inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a fresh job, without the variables by which a process knows itself as a rank."""
    base = os.environ if inherited is None else inherited
    kept = {key: value for key, value in base.items() if not _LEAKS.match(key)}
    return {**kept, **added}


def start_supervised(job: Job, granted: Mapping[str, str], grace: float) -> "subprocess.Popen[bytes]":
    """Start a job under a supervisor; when its standard input closes, the job is killed."""
    job.prepare()
    imports = {} if job.code is None else job.code.environment()
    command = job.command()  # may name what is in the snapshot, which is there now
    home = Path(__file__).parent if job.code is None else job.code.folder / "src" / "recur" / "sweeps"
    supervisor = str(home / "supervisor.py")
    with naming(job.log), job.open_log() as log:
        shown = [f"{name}={value}" for name, value in imports.items()]
        print("$", " ".join(map(shlex.quote, [*shown, "python", *command[1:]])), file=log, flush=True)
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", supervisor, str(job.lock), str(grace), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment({**granted, **imports, **job.environment}),
            start_new_session=True,  # Ctrl-C reaches the sweep, which passes it on
        )


def perform(job: Job, granted: Mapping[str, str], grace: float = 10.0) -> int:
    """Run a job to its end, wherever this is called, and return its exit code.

    A job that is complete is left as it is, with 0, and one that is being performed elsewhere with `PERFORMED`: a queue
    may start one twice.
    """
    job.lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The supervisor takes the job's own lock. It is free soon after whoever performed the job was killed.
        with Lock(f"{job.lock}.performed", timeout=_SOON):
            with Lock(job.lock, timeout=_SOON):
                pass
            return 0 if job.record() is not None else _run(job, granted, grace)
    except HeldError:
        print(f"recur: job {job.number} of {job.sweep.folder} is being performed elsewhere", file=sys.stderr)
        return PERFORMED


def _run(job: Job, granted: Mapping[str, str], grace: float) -> int:
    """Run a job, whose locks are held, to its end."""
    process = start_supervised(job, granted, grace)
    try:
        code = process.wait()
        while code < 0 and job.lives():  # the supervisor alone was killed
            time.sleep(0.2)
        return code
    except BaseException:
        process.terminate()
        process.wait(grace + 5)
        raise
    finally:
        assert process.stdin is not None
        process.stdin.close()  # ends whatever is left


def needs_of(cfg: DictConfig) -> Needs:
    """The devices and processes that a run with this config needs.

    Raises:
        UserError: it names GPUs by numbers that a job in a slot does not see, or wants several machines.
    """
    trainer = cfg.get("trainer") or {}
    nodes = trainer.get("num_nodes", 1)
    if isinstance(nodes, int) and nodes > 1:  # it would wait for a machine that nobody asked for
        rule = "wants several machines, and a job of a sweep has one"
        raise UserError("trainer.num_nodes", nodes, rule, "start such a run by itself, with srun python -m recur.train")
    accelerator = str(trainer.get("accelerator", "auto"))
    accelerator = "gpu" if accelerator == "cuda" else accelerator
    devices = trainer.get("devices", "auto")
    count = _count(devices)
    if accelerator == "cpu":
        return Needs("cpu", None, count or 1)
    named = list(devices) if OmegaConf.is_list(devices) else str(devices).split(",") if "," in str(devices) else []
    if sorted(map(str, named)) != sorted(map(str, range(len(named)))):
        raise UserError(
            "",
            rule=f"trainer.devices={devices}: a job of a sweep sees the GPUs of its own slot alone, numbered from 0",
            remedy=f"say how many, trainer.devices={count}, and which, hydra.launcher.gpus=[...]",
        )
    spread = count is None and "ddp" in str(trainer.get("strategy"))
    return Needs(accelerator, count, count or 1, spread)


def _count(devices: Any) -> int | None:
    """How many devices a `trainer.devices` means, None for all there are."""
    if OmegaConf.is_list(devices):
        return len(devices)
    text = str(devices)
    if text in ("auto", "-1", "None"):
        return None
    words = [word for word in text.split(",") if word.strip()]
    return len(words) if len(words) > 1 else int(text) if text.isdecimal() else None
