"""What every door shares: a user's mistake is one line and exit code 2, ours is a stack and exit code 1."""

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from recur.errors import UserError, nearest, reason
from recur.render import printable

TRUST = "RECUR_TRUST"  # variable that names the packages of which a run may build classes
_LONGEST = 1000  # characters of a message


def one_line(message: object) -> str:
    """A message on one line of bearable length, in which nothing that a user or a file brought along can act."""
    text = printable(" ".join(str(message).split()))
    cut = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:cut]} ... {text[-cut:]}"


def fail(message: object) -> NoReturn:
    """Print one line to standard error and leave with exit code 2."""
    print(f"recur: {one_line(message)}", file=sys.stderr, flush=True)
    raise SystemExit(2)


class _Trust(argparse.Action):
    """`--trust PACKAGE`: what a run names of this package may be built, here and in processes that are started."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        known = [*filter(None, os.environ.get(TRUST, "").split(",")), str(values)]
        os.environ[TRUST] = ",".join(dict.fromkeys(known))


class Parser(argparse.ArgumentParser):
    """A door's command line; a mistake in it is one line like every other."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.add_argument(
            "--trust", metavar="PACKAGE", action=_Trust, help="let runs build classes of your own package, too"
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and an option that is meant perhaps."""
        mistyped(self, message, self.prog)


def mistyped(parser: argparse.ArgumentParser, message: str, door: str) -> NoReturn:
    """Leave with one line for what `argparse` could not read."""
    unknown = message.partition("unrecognized arguments: ")[2].split(" ")
    hint = next((found for word in unknown if (found := nearest(word, parser._option_string_actions))), "")
    fail(f"{message}{hint or f'; see python -m {door} --help'}")


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


def guard(door: Callable[[], Any]) -> None:
    """Run a door; turn what a user can mend into one line.

    `RECUR_DEBUG=1` shows the stack instead. A closed pipe ends the door quietly, Ctrl-C ends it with 130. Warnings
    are one line too, without the place in the code that they came from.
    """
    warnings.formatwarning = _warning_line  # type: ignore[assignment]
    try:
        door()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("recur: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("RECUR_DEBUG") == "1":
            raise
        fail(message)


def explain(error: BaseException) -> str | None:
    """One line for an error that its user can mend; None for one that is ours."""
    module, name = type(error).__module__.partition(".")[0], type(error).__name__
    if module in ("hydra", "omegaconf"):
        return _explain_config(error, name)
    if name == "MisconfigurationException":
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {reason(error)}" if error.filename is not None else reason(error)
    if isinstance(error, (ValueError, OSError)) or name == "UserError":
        return str(error)
    if module == "yaml":
        return f"not YAML: {error}"
    if isinstance(error, (TypeError, AttributeError)) and _raised_by(error) in ("hydra", "omegaconf"):
        return f"{' '.join(sys.argv[1:])} cannot be composed: {error}"
    return None


def _raised_by(error: BaseException) -> str:
    """The package in whose code an error was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def _explain_config(error: BaseException, name: str) -> str:
    cause = error.__cause__
    if name == "InstantiationException" and cause is not None:
        known = explain(cause)
        where = str(error).rpartition("full_key: ")[2].strip() if "full_key" in str(error) else ""
        message = str(known or cause)
        return f"{where}: {message}" if where and not message.startswith(f"{where}.") else message
    if name == "MissingConfigException":
        wanted = str(getattr(error, "missing_cfg_file", "") or "")
        options: list[str] = list(getattr(error, "options", None) or [])
        group, _, option = wanted.rpartition("/")
        listed = f"; {group} can be {', '.join(options)}" if options else ""
        return f"there is no {group or 'config'} called {option!r}{nearest(option, options)}{listed}"
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
        return _explain_key(cause)
    override = str(getattr(error, "override", None) or "")
    if override and override not in str(error):
        return f"{override} cannot be read: {str(error).splitlines()[0]}"
    return str(error).split("\nSee ")[0] + (f" ({str(cause).splitlines()[0]})" if cause else "")


def _explain_key(cause: Any) -> str:
    from omegaconf import DictConfig, OmegaConf

    full = str(getattr(cause, "full_key", None) or getattr(cause, "key", ""))
    parent = getattr(cause, "parent_node", None)
    if not isinstance(parent, DictConfig):
        return str(cause).splitlines()[0]
    prefix, _, key = full.rpartition(".")
    siblings = [f"{prefix}.{k!s}" if prefix else str(k) for k in parent]
    hint = nearest(full, siblings) if nearest(key, [str(k) for k in parent]) else ""
    if not hint:  # perhaps the right key at the wrong place
        everywhere = _paths(OmegaConf.to_container(parent._get_root()))
        same = [path for path in everywhere if path.rpartition(".")[2] == key]
        hint = f": did you mean {same[0]}?" if same else nearest(full, everywhere)
    return f"unknown key {full}" + (hint or f"; {prefix or 'the config'} has {', '.join(siblings)}")


def _paths(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix] if prefix else []
    found = [prefix] if prefix else []
    for key, value in node.items():
        found += _paths(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def rank() -> int:
    """0 for the process that speaks and writes for all that train together, by what the environment says."""
    return max(int(os.environ.get(key) or 0) for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def tell(line: str) -> None:
    """One line on standard error."""
    print(f"recur: {line}", file=sys.stderr, flush=True)
