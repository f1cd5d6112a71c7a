"""Keeps one job: it dies with whoever asked for it, and takes its whole family along.

    python keeper.py LOCK GRACE COMMAND...

Standard input is a lifeline: when it closes, because the sweep was killed however rudely, the job's process group is
killed at once. SIGTERM ends the group gently and, after GRACE seconds, rudely. While the job lives, LOCK is locked, so
a sweep that is resumed can wait until nothing of its former life is left. Standard library alone: it must start fast.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading


def _kill(group: int, how: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, how)


def main(lock: str, grace: float, command: list[str]) -> int:
    """Run the command; return its exit code, 128 + n for signal n."""
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(held, fcntl.LOCK_EX)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:  # the child holds the lock too: it outlives even a killed keeper
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[held], process_group=0)  # noqa: S603
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127

    def watch() -> None:
        while True:
            try:
                if not os.read(0, 1):
                    break
            except OSError:
                break
        _kill(child.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()

    def stop() -> None:
        stopped.wait()
        _kill(child.pid, signal.SIGTERM)
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            _kill(child.pid, signal.SIGKILL)

    threading.Thread(target=stop, daemon=True).start()
    code = child.wait()
    _kill(child.pid, signal.SIGKILL)  # ranks that hang on a lost leader
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
