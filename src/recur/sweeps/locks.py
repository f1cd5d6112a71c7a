"""Locks on files of a sweep's folder: the system frees those of a process that ends, however it ends.

`filelock.FileLock` takes the mere presence of a file for a lock where a file system has no locks (Lustre mounted
without `flock`, some NFS): whoever is killed there, or leaves the file, blocks all that come later. Here such a file
system is one where everybody may go on.
"""

import os
import time
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor

_PAUSE = 0.05  # seconds between two tries


class HeldError(Exception):
    """Another process holds the lock."""


class Lock:
    """A lock on a file, which is made where it is missing and stays.

    Args:
        path: of the file.
        timeout: seconds to wait for another holder.
    """

    def __init__(self, path: str | Path, timeout: float = float("inf")) -> None:
        self._path, self._timeout = path, timeout
        self._file: int | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            HeldError: another process has held it all the time.
            OSError: the file cannot be opened.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        until = time.monotonic() + self._timeout
        try:
            while not _locked(file):
                if time.monotonic() >= until:
                    raise HeldError(str(self._path))
                time.sleep(_PAUSE)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "Lock":
        """Take it."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.release()


def _locked(file: int) -> bool:
    try:
        return lock_descriptor(file, blocking=False)
    except OSError:  # a file system without locks
        return True
