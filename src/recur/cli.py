"""What every command shares: a user's mistake is one line and exit code 2, ours is a stack and exit code 1."""

import argparse
import contextlib
import errno
import importlib.util
import os
import re
import shlex
import shutil
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from recur.errors import UserError, nearest, reason
from recur.render import printable

TRUST = "RECUR_TRUST"  # variable that names the packages of which a run may build classes
# The commands, in the order of `recur --help`, and what each does.
COMMANDS = {
    "train": "train a model, or many with -m",
    "evaluate": "print a run's metrics as JSON",
    "predict": "label texts, or rate each of their tokens",
    "generate": "let a language run write",
    "results": "write a sweep's leaderboard again",
    "export": "write a model as ONNX, torch.export or safetensors",
    "bench": "measure speed",
    "claims": "measure the claims of the course",
    "new": "write a project of your own",
    "completion": 'print the shell\'s completion: eval "$(recur completion bash)"',
}
# Packages that no run is trusted with: who needs something of them types its `_target_`.
NEVER_TRUSTED = ("recur", "hydra", "omegaconf", "lightning", "torch", "numpy", "builtins")
_PACKAGE = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")
_LONGEST = 1000  # characters of a message


def one_line(message: object) -> str:
    """A message on one line, shortened, in which control characters of a user's or a file's text are written out."""
    text = printable(" ".join(str(message).split()))
    cut = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:cut]} ... {text[-cut:]}"


def fail(message: object) -> NoReturn:
    """Print one line to standard error and leave with exit code 2."""
    print(f"recur: {one_line(message)}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def check_trusted(package: str, key: str) -> None:
    """Refuse to trust what is no package of the user's own: with Python's own modules a run could do anything.

    Args:
        package: its name.
        key: where it was typed.

    Raises:
        UserError: it is none.
    """
    if not _PACKAGE.fullmatch(package):
        raise UserError(key, package, "must be the name of a package", "such as my_models")
    top = package.partition(".")[0]
    if top in sys.stdlib_module_names or top in NEVER_TRUSTED:
        remedy = "if a run should build one thing of it, type that setting's _target_ again"
        raise UserError(key, package, "must be a package of your own, not one that anything could be done with", remedy)


def _check_there(package: str, key: str) -> None:
    try:
        spec = importlib.util.find_spec(package.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        remedy = "install it, or put its folder into PYTHONPATH"
        raise UserError(key, package, "must name a package that is installed", remedy)


def trust(packages: Iterable[str], key: str = "--trust") -> None:
    """Let what a run names of these packages be built, here and in processes that are started.

    Args:
        packages: their names.
        key: where they were given.

    Raises:
        UserError: one is not there, or is none of the user's own.
    """
    packages = list(packages)
    for package in packages:
        check_trusted(package, key)
        _check_there(package, key)
    known = [*filter(None, os.environ.get(TRUST, "").split(",")), *packages]
    os.environ[TRUST] = ",".join(dict.fromkeys(known))


def trusting() -> list[str]:
    """`--trust` with the packages that are trusted here, for a command that is to be typed later."""
    packages = ",".join(filter(None, map(str.strip, os.environ.get(TRUST, "").split(","))))
    return ["--trust", packages] if packages else []


class _Trust(argparse.Action):
    """`--trust PACKAGE`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            trust(str(values).split(","))
        except UserError as error:
            parser.refuse(str(error))


class Parser(argparse.ArgumentParser):
    """A command line; a mistake in it is one line like every other."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.add_argument(
            "--trust", metavar="PACKAGE", action=_Trust, help="let runs build classes of your own package, too"
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read a command line whose positional words stand together."""
        return self._all_of(*self.parse_known_args(args, namespace))

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read a command line whose flags may stand between the positional words."""
        return self._all_of(*self.parse_known_intermixed_args(args, namespace))

    def _all_of(self, given: Any, unknown: list[str]) -> Any:
        if unknown:
            flags = re.findall(r"--[a-z][a-z-]*", self.format_help())
            hint = next((close for word in unknown if (close := nearest(word, flags))), self._see_help())
            self.refuse(f"there is no option {' '.join(unknown)}{hint}")
        return given

    def _see_help(self) -> str:
        return f"; see python -m {self.prog} --help"

    def error(self, message: str) -> NoReturn:
        """Refuse what is wrong, and say where the help is."""
        self.refuse(message + self._see_help())

    def refuse(self, message: str) -> NoReturn:
        """Print what is wrong and leave."""
        fail(message)


def add_others(parser: argparse.ArgumentParser) -> None:
    """Add `--with RUN`, of commands that average several classifiers; the runs are in `others`."""
    parser.add_argument(
        "--with",
        dest="others",
        metavar="RUN",
        action="append",
        default=[],
        help="average a classifier's probabilities with those of another run, too; for several give it again",
    )


@contextlib.contextmanager
def typed_names() -> Iterator[None]:
    """Name the argument that a `UserError` is about as an option is typed: `top_k` becomes `--top-k`."""
    try:
        yield
    except UserError as error:
        key = f"--{error.key.replace('_', '-')}"
        raise UserError(key, error.value, error.rule, error.remedy) from None


def accept_any_character() -> None:
    """Write out what the terminal's encoding lacks, so that no character of a text stops a command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _warning_line(message: Warning | str, *_: Any) -> str:
    return f"recur: warning: {one_line(message)}\n"


def discard_output() -> None:
    """Send standard output nowhere from now on: nobody can read it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def going_on_unread() -> Iterator[None]:
    """Go on where what is printed here has no reader any more (`| head`): a long training is not ended by that."""
    try:
        yield
    except BrokenPipeError:
        discard_output()


def _replace_closed_streams() -> None:
    """Where standard output or error is closed (`>&-`), which Python has None for: write there, and nobody reads it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open as long as the process is


QUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # SLURM's before a job's time is up; the second is what submitit asks for
ECHO = 0.5  # seconds in which two signals count as one: `timeout` and a closed terminal send theirs twice


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Let a function have these signals; those that are ignored, as SIGHUP is under `nohup`, stay so."""
    before = {}
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def guard(command: Callable[[], Any]) -> None:
    """Run a command; turn what a user can fix into one line and exit code 2.

    That is a `UserError`, and an error of the operating system. Any other exception is a bug of ours: it keeps its
    stack, and the exit code is 1. `RECUR_DEBUG=1` shows the stack of a `UserError`, too. A closed pipe ends the command
    quietly, Ctrl-C ends it with 130. Warnings are one line, without the place in the code that they came from.
    """
    warnings.formatwarning = _warning_line  # type: ignore[assignment]
    _replace_closed_streams()
    if os.name == "nt":
        fail("needs Linux or macOS: on Windows run it in WSL")
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("recur: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            _name_stream(error)
        message = explain(error)
        if message is None or os.environ.get("RECUR_DEBUG") == "1":
            raise
        fail(message)


def _name_stream(error: OSError) -> None:
    """Name standard output where it is what could not be written: all else that is written names its file."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or sys.stdout.isatty():
        return
    try:
        kind = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError):  # no file at all
        return
    if stat.S_ISREG(kind) or stat.S_ISCHR(kind):
        discard_output()  # or Python would complain once more
        error.filename = "standard output"


def explain(error: BaseException) -> str | None:
    """One line for an error that its user can fix; None for one that is ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {reason(error)}" if error.filename is not None else reason(error)
    return None


def python() -> str:
    """This interpreter, as a shell finds it: by its name where that is the same one."""
    here = shutil.which("python")
    if here is not None and os.path.samefile(here, sys.executable) and Path(here).parent == Path(sys.executable).parent:
        return "python"
    inside = Path(sys.executable).is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(sys.executable) if inside else sys.executable)


def tensorboard(folder: Path) -> str:
    """The command that shows the runs in a folder, as a shell finds it: by its name where it is this interpreter's."""
    here = shutil.which("tensorboard")
    own = here is not None and Path(here).parent == Path(sys.executable).parent
    program = "tensorboard" if own else f"{python()} -m tensorboard.main"
    return f"{program} --logdir {shlex.quote(str(folder))}"


def rank() -> int:
    """This process's rank, from the environment: the one of rank 0 prints and writes files for all."""
    return max(int(os.environ.get(key) or 0) for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def notify(line: str) -> None:
    """One line on standard error."""
    print(f"recur: {line}", file=sys.stderr, flush=True)
