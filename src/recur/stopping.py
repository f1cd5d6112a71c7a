"""Signals: a run that is asked to end saves first, and says how to go on."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from recur import checkpoints

HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is SLURM's, before a job's time is up
_ECHO = 0.5  # seconds in which the same signal again is the same wish: `timeout` and others send it twice


class Stopped(SystemExit):
    """Leaves the process because of a signal, with the exit code that shells give it: 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Stop:
    """Hears SIGTERM, SIGINT and SIGUSR1.

    While a model is trained (`patient`) a signal is only noted, and `recur.recovery.LastCheckpoint` saves after the
    step; at other times it ends the process, since nothing would be lost. A second signal ends it at once.

    Attributes:
        number: of the signal that came, 0 before.
        patient: whether somebody will look.
    """

    def __init__(self) -> None:
        self.number = 0
        self.patient = False
        self._at = 0.0

    def listen(self) -> None:
        """Take the signals over; again after somebody else may have."""
        if threading.current_thread() is threading.main_thread():
            for number in HEARD:
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number:
            if now - self._at > _ECHO:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self._at = number, now
        if not self.patient and rank() == 0:
            raise Stopped(number)
        if rank() == 0:  # by hand: a handler may interrupt a print
            os.write(2, f"recur: {name(number)}: saving after this step; again to end at once\n".encode())


def rank() -> int:
    """0 for the process that speaks and writes for all that train together, by what the environment says."""
    return max(int(os.environ.get(key) or 0) for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def name(number: int) -> str:
    """`SIGTERM` for 15."""
    return signal.Signals(number).name


def leave(stop: Stopped, folder: Path) -> int:
    """Say how to go on with a run that was stopped, and give the exit code.

    After SLURM's signal the job is queued again. Ranks that Lightning started leave with 0: anything else would make it
    kill rank 0, which may still be saving.
    """
    if rank():
        return 0 if "RANK" not in os.environ and "SLURM_PROCID" not in os.environ else 128 + stop.number
    saved = any((folder / "checkpoints" / file).is_file() for file in (checkpoints.LAST, checkpoints.PREVIOUS))
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    asked = requeue() if stop.number == signal.SIGUSR1 else None
    again = f"go on with: {shlex.join(['python', '-m', 'recur.train', f'resume={shown}'])}"
    tell(
        f"stopped by {name(stop.number)}"
        + (f", saved in {shown}; {again}" if saved else " before there was anything to save; start it again")
        + (f" ({asked})" if asked else "")
    )
    return 128 + stop.number


def requeue() -> str | None:
    """Ask SLURM to start this job again; None outside SLURM, else what came of it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM could not be asked to start job {job} again: {error}"
    if done.returncode:
        return f"SLURM did not take job {job} again: {done.stderr.strip()}"
    return f"SLURM starts job {job} again"


def tell(line: str) -> None:
    """One line on standard error."""
    print(f"recur: {line}", file=sys.stderr, flush=True)
