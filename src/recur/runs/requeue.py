"""Where the run or the sweep of a SLURM job is, for the job to go on with it once SLURM starts the job again.

SLURM starts the same script in the same folder, with the job's number of before. The name of a run's folder has the
time in it, and the command would begin a new run: so a run that is stopped leaves a small file in the working folder.
It is of one job and one command, since a script may train several runs. It stays: the script may be started again for
the sake of a later command, when this one's run is complete.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from recur.runs import journal
from recur.runs.checkpoint import LAST, PREVIOUS
from recur.runs.files import read_regular, write_atomic

_LONGEST = 1 << 16  # bytes


def keep_place(words: Sequence[str], folder: Path) -> None:
    """Write down where the run or sweep of this command is; nothing outside SLURM.

    Args:
        words: of the command, as typed.
        folder: of the run or sweep.

    Raises:
        OSError: it cannot be written.
    """
    file = _file(words, os.environ)
    if file is not None:
        write_atomic(file, f"{folder.absolute()}\n")


def place_of(
    words: Sequence[str], typed: str | None, environment: Mapping[str, str], *, sweep: bool = False
) -> Path | None:
    """The run or sweep with which a job goes on that SLURM has started again; None for a new one.

    Args:
        words: of the command, as typed.
        typed: the folder that it names, which a job that was killed has not written down.
        environment: of the process.
        sweep: whether the command makes one.
    """
    if int(environment.get("SLURM_RESTART_COUNT") or 0) < 1:
        return None
    folders = [] if typed is None else [Path(os.path.expanduser(typed))]
    file = _file(words, environment)
    if file is not None:
        with contextlib.suppress(OSError, ValueError):
            folders.insert(0, Path(read_regular(file, _LONGEST).decode().removesuffix("\n")))
    return next((folder for folder in folders if _goes_on(folder, sweep)), None)


def _goes_on(folder: Path, sweep: bool) -> bool:
    if sweep:
        return (folder / journal.NAME).is_file()
    return any((folder / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))


def _file(words: Sequence[str], environment: Mapping[str, str]) -> Path | None:
    job = environment.get("SLURM_JOB_ID")
    if not job or not job.isalnum():
        return None
    command = hashlib.blake2b("\0".join(words).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return Path(f".recur-slurm-{job}-{command}")
