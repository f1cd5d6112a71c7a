"""The door to measurements: `python -m recur.bench [section ...] [--quick]`; `--help` lists the sections.

Every rival runs in the same process in alternation, several times; tables give the median and the spread. Rates count
useful work only: what is done for padding does not count. The rate of one large float32 matrix product, measured in
between, stands beside them as the limit. A section that has a bar says whether it was met.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from recur import cli
from recur.errors import nearest

SECTIONS = {  # name to the module of `recur.benchmarks` that has it as a function
    "engine": "kernels",
    "shapes": "kernels",
    "loss": "kernels",
    "loader": "training",
    "train": "training",
    "startup": "training",
    "language": "training",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.bench`."""
    parser = cli.Parser(prog="recur.bench", description="Measure the speed of everything that has a bar.")
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small shapes and few repeats: to try it, not to quote it")
    parser.add_argument("--repeats", type=int, help="rounds of each race (default 5, quick 2)")
    parser.add_argument("--imdb", metavar="FOLDER", help="IMDB as on the hub: real texts for `train`, real lengths")
    parser.add_argument("--wikitext", metavar="PATH", help="WikiText as on the hub, or its id, for `language`")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--out", default="outputs/bench", help="folder of bench.json and bench.png")
    arguments = parser.parse_args(argv)
    cli.guard(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    import torch

    from recur.benchmarks import kernels, training
    from recur.benchmarks.harness import Report, describe, draw, machine

    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        raise ValueError(f"there is no section {unknown[0]!r}{nearest(unknown[0], SECTIONS)}")
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.device not in ("cpu", "cuda") or (arguments.device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is cpu, cuda (where there is one) or auto, got {arguments.device!r}")
    if arguments.repeats is not None and arguments.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {arguments.repeats}")
    arguments.repeats = arguments.repeats or (2 if arguments.quick else 5)
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    record = json.loads(path.read_text()) if path.is_file() else {"sections": {}}
    print(f"# recur.bench\n\n{describe(machine(arguments.device))}")
    for name in arguments.sections or SECTIONS:
        print(f"\n## {name}", flush=True)
        began = time.perf_counter()
        report = Report(arguments.quick)
        getattr({"kernels": kernels, "training": training}[SECTIONS[name]], name)(arguments, report)
        section = {"machine": machine(arguments.device), "quick": arguments.quick, "repeats": arguments.repeats}
        section["seconds"] = round(time.perf_counter() - began, 1)
        section["when"] = time.strftime("%Y-%m-%d %H:%M:%S")
        record["sections"][name] = {**section, "bars": report.bars, "tables": report.tables}
        report.print_bars()
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, folder / "bench.png")
    print(f"\nwritten: {path} and {folder / 'bench.png'}")


if __name__ == "__main__":
    main()
