"""A job: one run of a door in a process of its own, in run mode, started as anyone could have typed it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from recur.runs.checkpoint import to_resume
from recur.runs.files import open_inside
from recur.runs.metrics import read_record
from recur.runs.trust import must_be_typed

TRIAL = "RECUR_TRIAL"  # JSON for a job of an Optuna sweep: the journal, the trial's number, the pruner
# Variables of a former or surrounding process that would make a fresh one believe it is somebody's rank.
_LEAKS = re.compile(
    r"^((LOCAL_|GROUP_|NODE_|ROLE_)?(RANK|WORLD_SIZE)|LOCAL_WORLD_SIZE|GROUP_WORLD_SIZE|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_.*|PL_GLOBAL_SEED|PL_SEED_WORKERS|SLURM_.*|OMPI_.*|PMIX?_.*|JSM_.*|HYDRA_MAIN_MODULE|RECUR_TRIAL)$"
)


@dataclass(frozen=True)
class Needs:
    """What a job asks of a place.

    Attributes:
        accelerator: `cpu`, `gpu` or `auto`.
        devices: how many GPUs, None for whatever the place has.
        ranks: processes it will start by itself.
    """

    accelerator: str = "auto"
    devices: int | None = None
    ranks: int = 1


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        number: from 0; the name of its folder unless `hydra.sweep.subdir` says otherwise.
        overrides: what is typed after `python -m recur.train`.
        folder: where it runs.
        lock: file that is locked while it lives.
        needs: devices and processes.
        monitor: the metric by which it is compared.
        module: the door.
        flags: Hydra's flags for the door.
        environment: further variables.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path
    lock: Path
    needs: Needs = field(default_factory=Needs)
    monitor: str = ""
    module: str = "recur.train"
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """All the job printed."""
        return self.folder / "output.log"

    def open_log(self) -> TextIO:
        """That file, to add to; a link in its place is not followed."""
        file = open_inside(self.folder, self.log.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(file, "a", encoding="utf-8")

    def record(self) -> dict[str, Any] | None:
        """Its `metrics.json`, which it writes last; None before."""
        return read_record(self.folder)

    def command(self) -> list[str]:
        """What to type: a fresh run, or one that goes on from its own last checkpoint."""
        start = [sys.executable, "-m", self.module]
        if self.can_continue():
            # What a run folder's config may not name by itself (`recur.runs.trust`) is said again.
            own = [text for text in self.overrides if must_be_typed(text)]
            return [*start, f"resume={_quoted(str(self.folder))}", *[f"++{text.lstrip('+~')}" for text in own]]
        return [*start, *self.flags, *self.overrides, f"hydra.run.dir={_quoted(str(self.folder))}"]

    def can_continue(self) -> bool:
        """Whether an earlier life left a whole checkpoint to go on from."""
        if not (self.folder / ".hydra" / "config.yaml").is_file():
            return False
        try:
            return bool(to_resume(self.folder))
        except ValueError:  # there is none, or it is damaged: the job begins anew
            return False

    def prepare(self) -> None:
        """Make its folder; remove the traces of a former life that left nothing to go on from."""
        if self.folder.is_dir() and not self.can_continue():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock.parent.mkdir(parents=True, exist_ok=True)

    def last_words(self) -> str:
        """The last line it printed."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def clean_environment(added: Mapping[str, str], inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a fresh job: nothing in it says that it is somebody's rank."""
    base = os.environ if inherited is None else inherited
    kept = {key: value for key, value in base.items() if not _LEAKS.match(key)}
    return {**kept, **added}


def start_supervised(job: Job, granted: Mapping[str, str], grace: float) -> "subprocess.Popen[bytes]":
    """Start a job under a supervisor; its standard input is the lifeline."""
    job.prepare()
    command = job.command()
    supervisor = str(Path(__file__).with_name("supervisor.py"))
    with job.open_log() as log:
        print("$", " ".join(map(shlex.quote, ["python", *command[1:]])), file=log, flush=True)
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", supervisor, str(job.lock), str(grace), *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment({**granted, **job.environment}),
            start_new_session=True,  # Ctrl-C is the sweep's to pass on
        )


def perform(job: Job, granted: Mapping[str, str], grace: float = 10.0) -> int:
    """Run a job to its end, wherever this is called, and return its exit code; 0 at once if it is complete."""
    if job.record() is not None:
        return 0
    process = start_supervised(job, granted, grace)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait(grace + 5)
        raise


def _quoted(path: str) -> str:
    """A path as Hydra's override grammar reads it."""
    if re.fullmatch(r"[\w./\-:+@%]+", path):
        return path
    escaped = path.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def needs_of(cfg: DictConfig) -> Needs:
    """What a run with this config asks of a place.

    Raises:
        ValueError: it names GPUs by numbers that a slot's job does not see.
    """
    trainer = cfg.get("trainer") or {}
    accelerator = str(trainer.get("accelerator", "auto"))
    accelerator = "gpu" if accelerator == "cuda" else accelerator
    devices = trainer.get("devices", "auto")
    count = _count(devices)
    if accelerator == "cpu":
        return Needs("cpu", None, count or 1)
    named = list(devices) if OmegaConf.is_list(devices) else str(devices).split(",") if "," in str(devices) else []
    if sorted(map(str, named)) != sorted(map(str, range(len(named)))):
        raise ValueError(
            f"trainer.devices={devices}: a job of a sweep sees its own slot's GPUs alone, numbered from 0; say how "
            f"many, trainer.devices={count}, and which, hydra.launcher.gpus=[...]"
        )
    return Needs(accelerator, count, count or 1)


def _count(devices: Any) -> int | None:
    """How many devices a `trainer.devices` means, None for all there are."""
    if OmegaConf.is_list(devices):
        return len(devices)
    text = str(devices)
    if text in ("auto", "-1", "None"):
        return None
    words = [word for word in text.split(",") if word.strip()]
    return len(words) if len(words) > 1 else int(text) if text.isdecimal() else None
