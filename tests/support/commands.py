"""Runs the commands as processes of their own, quickly.

Importing torch and Lightning takes seconds, and the tests run the commands hundreds of times. So a server imports
them once and forks: each call still is a fresh process that runs the module as `__main__`, with its own arguments,
folder, environment, standard streams and exit code.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_context = multiprocessing.get_context("forkserver")


@cache
def server() -> multiprocessing.context.ForkServerContext:
    """The server, which has imported what `support.preload` names; its `Process` is a fork of it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [before])])
    try:
        _context.set_forkserver_preload(["support.preload"])
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return _context


def _enter(module: str, words: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = [module, *words]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0 if code is None else 1)


def run_command(
    module: str,
    *words: object,
    cwd: Path | str | None = None,
    environment: dict[str, str] | None = None,
    text: str | bytes = "",
    timeout: float = 300,
) -> "CompletedProcess[str]":
    """Run `python -m recur.<module> words...` and wait.

    Args:
        module: the command's name.
        words: its command line.
        cwd: folder to run in.
        environment: variables besides this process's own.
        text: standard input.
        timeout: seconds until it is ended and `TimeoutExpired` raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [str(Path(folder) / name) for name in ("in", "out", "err")]
        Path(streams[0]).write_bytes(text if isinstance(text, bytes) else text.encode())
        surroundings = {**os.environ, **(environment or {})}
        arguments = (f"recur.{module}", [str(word) for word in words], str(cwd or Path.cwd()), surroundings, streams)
        process = server().Process(target=_enter, args=arguments)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired([module, *words], timeout)
        out, err = (Path(name).read_bytes().decode("utf-8", "replace") for name in streams[1:])
        return CompletedProcess([module, *words], process.exitcode, out, err)
