"""The door to using a run: `python -m recur.predict RUN "a text" ...`.

A sentiment run gives each text a label and a probability and, with `--explain`, says what each token contributed. A
language run says how much each token surprised it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from recur import cli


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.predict` and `recur-predict`."""
    arguments = _parser().parse_intermixed_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="recur.predict",
        description="Label texts with a sentiment run, or see what surprises a language run.",
        epilog="example: python -m recur.predict outputs/... 'This film is terrible' 'This film is great' --explain",
    )
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: standard input, one text a line")
    parser.add_argument("--file", metavar="PATH", help="read texts from a txt (one a line), csv, tsv, jsonl or parquet")
    parser.add_argument("--column", metavar="NAME", help="column of --file that holds the texts (default: the run's)")
    parser.add_argument("--skip-bad-rows", action="store_true", help="go on past empty and unreadable texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object a text instead of a table")
    parser.add_argument("--explain", action="store_true", help="show each token's contribution")
    parser.add_argument("--html", metavar="PATH", help="write the explanation as a page that stands alone")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # whatever the locale, no text stops the door
            stream.reconfigure(errors="backslashreplace")
    if arguments.file and arguments.texts:
        raise ValueError(f"give texts or --file, not both: got {len(arguments.texts)} texts and {arguments.file}")
    if arguments.column and not arguments.file:
        raise ValueError(f"--column {arguments.column} needs --file, whose column it names")
    if arguments.file and not Path(arguments.file).is_file():
        raise ValueError(f"there is no file {arguments.file}")
    from recur.inference.io import check_page

    if arguments.html:  # now, and not when all is explained
        check_page(arguments.html)

    from recur.inference.classification import _Sentiment
    from recur.inference.io import _chunks, _texts
    from recur.inference.language import _Language
    from recur.runs.run import Run, device

    run = Run.open(arguments.run)
    run.task.to(device(arguments.device)).requires_grad_(False)
    answer: Any = _Sentiment if run.family == "sentiment" else _Language
    answerer = answer(run, arguments, Console(highlight=False, markup=False, emoji=False, soft_wrap=True))
    for chunk in _chunks(_texts(arguments, run), alone=not arguments.file and sys.stdin.isatty()):
        answerer.tell(chunk)
    answerer.close()


if __name__ == "__main__":
    main()
