"""`python -m recur.bench [section ...] [--quick]`: measurements of speed; `--help` lists the sections.

Every rival runs in the same process in alternation, several times; tables give the median and the spread. Rates count
useful work only: what is done for padding does not count. The rate of one large float32 matrix product, measured in
between, stands beside them as the limit. A section with targets says which were met.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module

from recur import cli
from recur.errors import ABSENT, UserError, nearest

SECTIONS = {  # name to the module of `recur.benchmarks` that has it as a function
    "engine": "kernels",
    "shapes": "kernels",
    "loss": "kernels",
    "bandwidth": "bandwidth",
    "loader": "training",
    "train": "training",
    "startup": "training",
    "predict": "inference",
    "language": "language",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.bench` and `recur-bench`."""
    parser = cli.Parser(prog="recur.bench", description="Measure speed, and hold it against targets.")
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small shapes and few repeats: to try it, not to quote it")
    parser.add_argument("--repeats", type=int, help="rounds of each race (default 5, quick 2)")
    parser.add_argument("--imdb", metavar="FOLDER", help="IMDB as on the hub: real texts for `train`, real lengths")
    parser.add_argument("--wikitext", metavar="PATH", help="WikiText as on the hub, or its id, for `language`")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--out", default="outputs/bench", help="folder of bench.json and bench.png (--quick: below it)")
    arguments = parser.parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        raise UserError(unknown[0], ABSENT, f"is no section{nearest(unknown[0], SECTIONS)}")
    if arguments.repeats is not None and arguments.repeats < 1:
        raise UserError("--repeats", arguments.repeats, "must be at least 1")
    from recur.benchmarks import figures
    from recur.benchmarks.harness import Record, Settings, usable_device

    settings = Settings(
        quick=arguments.quick,
        repeats=arguments.repeats or (2 if arguments.quick else figures.REPEATS),
        device=usable_device(arguments.device),
        imdb=arguments.imdb,
        wikitext=arguments.wikitext,
        out=arguments.out,
    )
    record = Record(settings)
    for name in arguments.sections or SECTIONS:
        module = import_module(f"recur.benchmarks.{SECTIONS[name]}")
        record.measure(name, getattr(module, name))
    record.close()


if __name__ == "__main__":
    main()
