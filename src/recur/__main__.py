"""All commands as one: `recur train ...` is `python -m recur.train ...`; so is `python -m recur train ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module, util

from recur import __version__, cli
from recur.cli import COMMANDS
from recur.errors import nearest


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `recur` and `python -m recur`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
    elif words[0] in ("-V", "--version"):
        print(__version__)
    elif words[0] not in COMMANDS:
        hint = nearest(words[0], COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        cli.fail(f"there is no command {words[0]!r}{hint}")
    else:
        module = import_module(f"recur.{words[0]}")
        sys.argv = [str((util.find_spec(module.__name__) or module).origin or words[0]), *words[1:]]  # as with -m
        own = sys.modules["__main__"]
        if getattr(getattr(own, "__spec__", None), "name", "") == "recur.__main__":  # what starts jobs and ranks looks
            own.__spec__ = module.__spec__
        module.main()


def _help() -> str:
    lines = [f"  {name:<11} {what}" for name, what in COMMANDS.items()]
    return "usage: recur COMMAND ...\n\n" + "\n".join(lines) + "\n\nrecur COMMAND --help says what each takes."


if __name__ == "__main__":
    main()
