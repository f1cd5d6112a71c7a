"""The command for a project of one's own: `python -m recur.new NAME` writes one that installs, trains and is tested.

It has a network, a cell, a tokenizer, a data module, a metric and a callback outside this package, the configs that
name them, and a Makefile.
"""

import argparse
import importlib.util
import keyword
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from recur import __version__, cli
from recur.errors import UserError
from recur.runs.files import write_atomic


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.new` and `recur-new`."""
    arguments = _parser().parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="recur.new",
        description="Write a project of your own that trains with recur.",
        epilog="example: python -m recur.new my_models && cd my_models && make install train",
    )
    parser.add_argument("name", help="name of the package, and of the folder to write")
    parser.add_argument("--into", metavar="FOLDER", default=".", help="where to write it (default: here)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    folder = write(arguments.name, Path(arguments.into))
    print(f"wrote {folder}; next:\n  cd {shlex.quote(str(folder))}\n  make install train")


def write(name: str, into: Path) -> Path:
    """Write the project.

    Args:
        name: of the package and the folder.
        into: folder in which it is made.

    Returns:
        the project's folder.

    Raises:
        UserError: a name that no package can have or that recur has for something else, or a folder that is there.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise UserError("NAME", name, "must be a new package's name: small letters, digits and _", "my_models is one")
    if name in ("recur", "torch", "lightning", "hydra", "conf", "src", "tests"):
        raise UserError("NAME", name, "must be another than that of a package it uses", "my_models is one")
    for kind, names in _taken().items():
        if name in names:
            raise UserError("NAME", name, f"must be another than that of a {kind} of recur", "my_models is one")
    try:
        there = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        there = None
    if there is not None and there.origin is not None:  # a mere folder of that name has no origin
        raise UserError("NAME", name, f"must be another than that of a package that is there, {there.origin}")
    folder = into / name
    if folder.exists():
        raise UserError(str(folder), rule="is there already", remedy="choose another name, or --into another folder")
    _copy(resources.files("recur") / "templates" / "project", folder, name)
    (folder / "src" / "package").rename(folder / "src" / name)
    return folder


def _taken() -> dict[str, set[str]]:
    """What recur has by name: a project's config, cell or tokenizer of that name would not be the one that is used."""
    from recur.config.compose import group_options
    from recur.data import own_tokenizers
    from recur.nn import CELLS

    tokenizers = {*own_tokenizers.KINDS, *own_tokenizers.names()}
    return {"config": set().union(*group_options().values()), "cell": set(CELLS), "tokenizer": tokenizers}


def versions() -> str:
    """The versions of recur that a project written by this one may have: up to the next minor one, without it."""
    major, minor = __version__.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def _copy(source: Traversable, target: Path, name: str) -> None:
    target.mkdir(parents=True)
    words = {"@NAME@": name, "@VERSIONS@": versions()}
    for entry in source.iterdir():
        place = target / entry.name.replace("@NAME@", name).removesuffix(".in")
        if entry.is_dir():
            _copy(entry, place, name)
        else:
            text = entry.read_text(encoding="utf-8")
            for mark, word in words.items():
                text = text.replace(mark, word)
            write_atomic(place, text)


if __name__ == "__main__":
    main()
