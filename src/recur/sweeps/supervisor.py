"""Supervises one job: when the sweep that started it ends, all processes of the job are ended.

    python supervisor.py LOCK GRACE COMMAND...

Standard input is a pipe from the sweep: when it closes, because the sweep was killed, the job's process group is
killed at once.
SIGTERM is passed on to the group, SIGKILL follows after GRACE seconds. While the job runs, LOCK is locked, so a sweep
that is resumed can wait until no process of its jobs is left.

Nothing but quick parts of the standard library is imported (`flock` and not `filelock`): a slot is idle until this has
started. The job inherits the open file, and with it the lock.
"""

import fcntl
import os
import select
import signal
import sys
import time


def main(lock: str, grace: float, command: list[str]) -> int:
    """Run the command; return its exit code, 128 + n for signal n."""
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:  # noqa: SIM105 (contextlib takes long to import)
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:  # a file system without locks, as some of clusters are
        pass
    os.set_inheritable(held, True)  # the job holds the lock too: it may outlive a killed supervisor
    awake, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    os.set_blocking(awake, False)
    signal.set_wakeup_fd(wakeup)
    # SLURM sends USR1 or USR2, submitit's choice, to all processes of a job before its time is up: the job saves then.
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    try:
        child = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127

    def kill(how: int) -> None:
        try:  # noqa: SIM105 (contextlib takes long to import)
            os.killpg(child, how)
        except (ProcessLookupError, PermissionError):
            pass

    watched, until = [0, awake], None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        ready, _, _ = select.select(watched, [], [], None if until is None else max(0.0, until - time.monotonic()))
        if 0 in ready and not os.read(0, 1):
            watched.remove(0)
            kill(signal.SIGKILL)
        if awake in ready and signal.SIGTERM in os.read(awake, 64) and until is None:
            kill(signal.SIGTERM)
            until = time.monotonic() + grace
        if until is not None and time.monotonic() >= until:
            kill(signal.SIGKILL)
            until = time.monotonic() + 1.0
    kill(signal.SIGKILL)  # ranks that still wait for one that has ended
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
