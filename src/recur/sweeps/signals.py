"""The signals that end a sweep, and what SLURM is asked for then."""

import signal
import time
from pathlib import Path
from typing import Any

from recur.cli import ECHO, QUEUE
from recur.config.compose import typed_words
from recur.runs.requeue import keep_place


class Heard:
    """Ends a sweep as Ctrl-C does, once: while its jobs are being stopped, a second signal would end them unsaved.

    A closed terminal comes as two signals, and SLURM's SIGTERM follows its warning.
    """

    def __init__(self) -> None:
        self.number, self._at, self._followed = 0, 0.0, False

    def __call__(self, number: int, _: Any) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt: it ends the sweep.
        """
        now = time.monotonic()
        if self.number:
            if self.number == signal.SIGTERM and number in QUEUE:
                self.number = number  # the warning comes second where a job is preempted
                return
            if self.number in QUEUE and number == signal.SIGTERM and not self._followed:
                self._followed, self._at = True, now
                return
            if now - self._at <= ECHO:
                return
        else:
            self.number, self._at = number, now
        raise KeyboardInterrupt


def queue_again(folder: Path) -> str | None:
    """Have SLURM start this job again, which will then go on with the sweep; None outside SLURM.

    Returns:
        what came of it.
    """
    from recur.training.failures import requeue

    try:
        keep_place(typed_words(), folder)
        return requeue()
    except OSError as error:
        return f"SLURM is not asked to start the job again, which would begin a new sweep: {error}"
