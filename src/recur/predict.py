"""`python -m recur.predict RUN "a text" ...`: answers about texts.

A sentiment run gives each text a label and a probability and, with `--explain`, what each token contributed. A
language run gives the negative log-likelihood of each token. Texts come from the command line, a file or a pipe; on a
pipe, a line is answered as soon as it has come.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur import cli
from recur.errors import UserError

if TYPE_CHECKING:
    from recur.inference.io import Given


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.predict` and `recur-predict`."""
    arguments = _parser().parse_intermixed_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="recur.predict",
        description="Label texts with a sentiment run, or see which tokens a language run finds unlikely.",
        epilog="example: python -m recur.predict outputs/... 'This film is terrible' 'This film is great' --explain",
    )
    parser.add_argument("run", help="run folder or checkpoint")
    cli.add_others(parser)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: standard input, one text a line")
    parser.add_argument("--file", metavar="PATH", help="read texts from a txt (one a line), csv, tsv, jsonl or parquet")
    parser.add_argument("--column", metavar="NAME", help="column that holds the texts (default: the run's)")
    parser.add_argument(
        "--delimiter", metavar="C", help="between the fields of a csv or tsv in --file (default: the run's)"
    )
    parser.add_argument(
        "--format",
        default="auto",
        metavar="F",
        help="of standard input: text, jsonl or auto (default: by its first line)",
    )
    parser.add_argument("--skip-bad-rows", action="store_true", help="go on past empty and unreadable texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object a text, with the input's columns")
    parser.add_argument(
        "--out", metavar="PATH", help="write a csv, tsv or jsonl with the input's columns, print nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="let --out replace a file")
    parser.add_argument("--explain", action="store_true", help="show each token's contribution")
    parser.add_argument("--html", metavar="PATH", help="write the explanation as a page that stands alone")
    parser.add_argument("--gates", metavar="PATH", help="draw the gates of an LSTM over one text as png, svg or pdf")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    cli.accept_any_character()
    _check(arguments)
    from recur.inference import io
    from recur.inference.display import check_page, display_for
    from recur.inference.ensemble import ensemble_of
    from recur.inference.run import load

    _check_reading(arguments)
    if arguments.out:
        io.check_out(arguments.out, arguments.overwrite, _sources(arguments))
    if arguments.html:
        check_page(arguments.html)
    if arguments.gates:
        from recur.inference.probes import check_chart

        check_chart(arguments.gates)
    run = load(arguments.run, arguments.device)
    ensemble = ensemble_of(run, arguments.others, arguments.device)
    if arguments.gates:
        from recur.inference.probes import write_gates

        write_gates(run, arguments.texts[0], Path(arguments.gates))
    with io.open_out(arguments.out) as stream:
        records = io.records(stream, arguments.out) if arguments.json or arguments.out else None
        display = display_for(run, records, explain=arguments.explain, page=arguments.html, ensemble=ensemble)
        for chunk in _texts(arguments, run):
            good, problem = io.good_ones(display.check(chunk), arguments.skip_bad_rows)
            display.answer(good)
            if problem is not None:
                display.close()
                raise problem
        display.close()
    if arguments.out:
        cli.notify(f"wrote {arguments.out}")


def _sources(arguments: argparse.Namespace) -> list[str | int]:
    """The file that is read, by its path or as standard input; none where texts are arguments."""
    if arguments.file or arguments.texts:
        return [arguments.file] if arguments.file else []
    with suppress(OSError, ValueError):  # in the place of standard input something without a descriptor
        return [sys.stdin.fileno()]
    return []


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before anything heavy is loaded."""
    if arguments.file and arguments.texts:
        raise UserError(
            "--file", arguments.file, f"cannot be given with {len(arguments.texts)} texts", "give one of them"
        )
    if arguments.file and not Path(arguments.file).is_file():
        raise UserError("--file", arguments.file, "names no file")
    if not arguments.file and not arguments.texts and sys.stdin is None:  # `<&-`
        raise UserError("standard input", rule="is closed", remedy="give texts, or a file of texts with --file")
    if arguments.column and arguments.texts:
        raise UserError("--column", arguments.column, "names a column of --file or of JSON lines on standard input")
    if arguments.format not in ("auto", "text", "jsonl"):
        raise UserError("--format", arguments.format, "must be auto, text or jsonl")
    if arguments.gates and len(arguments.texts) != 1:
        raise UserError("--gates", rule="draws one text", remedy="give one, as an argument")
    if arguments.gates and Path(arguments.gates).suffix not in (".png", ".svg", ".pdf"):
        raise UserError("--gates", arguments.gates, "must end in .png, .svg or .pdf")
    if arguments.gates and not Path(arguments.gates).parent.is_dir():
        raise UserError("--gates", arguments.gates, "lies in no folder that exists")
    for option in ("explain", "html", "gates"):
        if arguments.others and getattr(arguments, option):
            raise UserError(f"--{option}", rule="shows one run", remedy="leave out --with")
    if arguments.overwrite and not arguments.out:
        raise UserError("--overwrite", rule="does nothing without --out", remedy="give both")


def _check_reading(arguments: argparse.Namespace) -> None:
    """Refuse options of how texts are read that do nothing for what is read."""
    from recur.data.checks import one_delimiter
    from recur.inference import io

    if arguments.delimiter is not None and not (arguments.file and io.is_delimited(arguments.file)):
        raise UserError("--delimiter", rule="does nothing without a csv or tsv in --file", remedy="give both")
    one_delimiter(arguments.delimiter, "--delimiter")
    if arguments.format != "auto" and arguments.texts:
        raise UserError("--format", rule="does nothing for texts as arguments", remedy="leave it out")
    if arguments.format != "auto" and arguments.file and not io.has_lines(arguments.file):
        raise UserError("--format", rule=f"does nothing for {arguments.file}", remedy="leave it out")


def _texts(arguments: argparse.Namespace, run: Any) -> "Iterator[list[Given]]":
    """Texts of the command line, of a file or of standard input, in groups."""
    from recur.data.checks import one_delimiter
    from recur.inference import io

    own, asked = run.config["data"].get("text_column", "text"), arguments.column
    column = arguments.column or own
    if isinstance(own, int) and isinstance(column, str) and column.isdecimal():
        column = int(column)
    if isinstance(column, int) and not (arguments.file and io.is_delimited(arguments.file)):
        column = "text"  # what has no columns by number has them by name
    if arguments.file:
        delimiter = arguments.delimiter or run.config["data"].get("delimiter")
        skip, kind = arguments.skip_bad_rows, arguments.format
        return io.from_file(arguments.file, column, skip, kind, one_delimiter(delimiter), asked)
    if arguments.texts:
        return io.from_arguments(arguments.texts)
    if sys.stdin.isatty():
        cli.notify("reading texts, one a line; end with Ctrl-D")
    return io.from_stream(sys.stdin.buffer, "standard input", column, arguments.format, asked)


if __name__ == "__main__":
    main()
