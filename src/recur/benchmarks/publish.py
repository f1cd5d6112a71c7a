"""Writes the published figures from files that commands wrote: `make results`.

The figures of each RUN go to `.github/results/<name>.json` first, those of several runs of one experiment together; the
curve goes beside it, and the figures to the head of the experiment's file. `bench.json` of a folder that `recur.bench`
wrote goes to `.github/results/bench.json`; `recur.claims --publish .github/results` writes `claims.json` there.
`.github/results/README.md` then holds all of it, and the README a short table of the runs and one of the claims. Texts
of `claims.json` and heads of experiments are brought up to date without a RUN, too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recur import cli
from recur.benchmarks import figures
from recur.course import record as course
from recur.course.claim import load as load_claim
from recur.course.claim import names as claim_names
from recur.errors import ABSENT, UserError
from recur.runs import metrics
from recur.runs.files import write_atomic

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / ".github" / "results"
_HEADLINES = ("imdb_fast", "imdb_strong", "imdb_guide", "wikitext2_fast", "wikitext2_small", "shakespeare_char", "lm")
BENCH, CLAIMS = RESULTS / "bench.json", RESULTS / "claims.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.benchmarks.publish`."""
    parser = cli.Parser(prog="recur.benchmarks.publish", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run or bench folders whose figures to publish")
    arguments = parser.parse_args(argv)
    cli.guard(lambda: _run([Path(run) for run in arguments.runs]))


def _run(runs: Sequence[Path]) -> None:
    from recur.config.compose import conf_dir
    from recur.inference.run import load

    RESULTS.mkdir(parents=True, exist_ok=True)
    by_name: dict[str, list[Path]] = {}
    measured: dict[str, Any] = {}
    for run in runs:
        if (run / "bench.json").is_file():
            sections = json.loads((run / "bench.json").read_text(encoding="utf-8"))["sections"]
            if quick := [name for name, section in sections.items() if section["quick"]]:
                raise UserError(str(run), ABSENT, f"has quick figures ({quick[0]})", "measure them without --quick")
            if twice := sorted(sections.keys() & measured.keys()):
                raise UserError(str(run), ABSENT, f"has {twice[0]}, as another folder has", "name one of them")
            measured |= sections
        else:
            by_name.setdefault(str((metrics.read_record(run) or {}).get("name")), []).append(run)
    new = {name: figures.record_of(folders) for name, folders in by_name.items()}
    if measured:  # all has been looked at: from here on it is written
        before = json.loads(BENCH.read_text(encoding="utf-8"))["sections"] if BENCH.is_file() else {}
        write_atomic(BENCH, json.dumps({"sections": before | measured}, indent=1) + "\n")
    for name, record in new.items():
        folders = by_name[name]
        write_atomic(RESULTS / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        first = min(folders, key=lambda folder: int((metrics.read_record(folder) or {}).get("seed", 0)))
        load(first).plot(reference=reference(name)).savefig(RESULTS / f"{name}.png", dpi=80)
    paths = [path for path in sorted(RESULTS.glob("*.json")) if path not in (BENCH, CLAIMS)]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for record in records:
        head = figures.path_of(record["name"])
        write_atomic(head, figures.with_header(head.read_text(encoding="utf-8"), figures.header(record)))
    bench, claims = (json.loads(p.read_text(encoding="utf-8")) if p.is_file() else None for p in (BENCH, CLAIMS))
    if claims is not None:
        folder = conf_dir() / "claims"
        claims = course.with_texts(claims, {name: load_claim(folder, name) for name in claim_names(folder)})
        write_atomic(CLAIMS, json.dumps(claims, indent=1) + "\n")
    write_atomic(RESULTS / "README.md", results_page(records, bench, claims))
    readme = ROOT / "README.md"
    text = replaced(readme.read_text(encoding="utf-8"), "results", short_table(records))
    if claims is not None:
        text = replaced(text, "claims", course.short_table(claims))
    write_atomic(readme, text)


def reference(experiment: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Curves of others that a claim on this experiment shows beside its own, such as a guide's log.

    Returns:
        By metric without its split and by name, the epochs and values.
    """
    from recur.config.compose import conf_dir

    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    folder = conf_dir() / "claims"
    for claim in (load_claim(folder, name) for name in claim_names(folder)):
        if claim.sweep is None or f"experiment={experiment}" not in claim.sweep.base:
            continue
        for name, points in (claim.chart.get("reference") or {}).items():
            metric = str(claim.chart["y"]).removeprefix("val/")
            curves.setdefault(metric, {})[name] = [(float(x), float(y)) for x, y in points]
    return curves


def results_page(
    records: Sequence[dict[str, Any]], bench: dict[str, Any] | None, claims: dict[str, Any] | None = None
) -> str:
    """Everything that is published, as Markdown."""
    parts = [
        "# Published figures",
        "Written by `make results`; do not edit. Each line is an experiment under `conf/experiment`, whose head "
        "gives the command.",
        "## Runs",
        results_table(records),
    ]
    if claims is not None:
        by_hand = {name for name, one in claims["claims"].items() if one.get("long") or not one.get("further")}
        short = [one for name, one in claims["claims"].items() if name not in by_hand]
        minutes = sum(one["seconds"] for one in short) / 60
        devices = ", ".join(sorted({one["device"] for one in short}))
        named = ", ".join(f"`{name}`" for name in sorted(by_hand))
        alone = [f"the command beside each measured {named}"] if by_hand else []
        cost = f"in {minutes:.0f} minutes of computing on {devices}"
        together = [f'`make guides ARGS="--further 2"` measured them, {cost}'] if short else []
        parts += [
            "## The claims of the course",
            f"{'; '.join([*together, *alone])}.",
            course.table(claims),
        ]
        if arms := course.arm_tables(claims):
            parts += ["## Comparisons beyond the course", arms]
    if bench is not None:
        parts += [
            "## Speed",
            f"`python -m recur.bench --imdb FOLDER --wikitext FOLDER` measured this on {_days(bench['sections'])}"
            f"{_repeats(bench['sections'])}. The code may have changed since.",
            speed_tables(bench),
        ]
    return "\n\n".join(parts) + "\n"


def short_table(records: Sequence[dict[str, Any]]) -> str:
    """The runs that a reader asks for first, in a few columns."""
    lines = ["| experiment | validation | test | a model of n-grams | time, threads |", "|---|---|---|---|---|"]
    for record in (record for name in _HEADLINES for record in records if record["name"] == name):
        shown = [figures.spread(record, "val"), figures.spread(record, "test"), figures.of_ngrams(record)]
        part = f", {figures.part(record)}" if figures.part(record) else ""
        time = f"{figures.time(record, records)}, {record['threads']}"
        lines.append(f"| `{record['name']}`{part} | {' | '.join(shown)} | {time} |")
    return "\n".join(lines)


def replaced(text: str, name: str, content: str) -> str:
    """`text` with what stands between its marks `<!-- name -->` and `<!-- /name -->` replaced.

    Raises:
        ValueError: the marks are not there.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text or end not in text:
        raise ValueError(f"the text has no {start} ... {end}")
    return text[: text.index(start) + len(start)] + "\n" + content + "\n" + text[text.index(end) :]


def results_table(records: Sequence[dict[str, Any]]) -> str:
    """One Markdown line a run: what came out, of what size, how fast, on what. Then how each is got, and its curve."""
    names = (
        "validation",
        "test",
        "ceiling",
        "n-grams",
        "parameters",
        "epochs",
        "time",
        "tokens/s",
        "threads",
        "hardware",
    )
    lines = [f"| experiment | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for record in records:
        cells = [
            f"`{record['name']}`",
            figures.spread(record, "val"),
            figures.spread(record, "test") + figures.of_texts(record),
            figures.of_ceiling(record),
            figures.of_ngrams(record),
            f"{record['parameters']['trainable']:,}",
            f"{record['epochs']} of {record['epochs_of']}" if figures.part(record) else str(record["epochs"]),
            figures.time(record, records),
            f"{record['tokens_per_second']:,}",
            str(record["threads"]),
            record["device"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for record in records:
        seconds = [figures.minutes(run["train_seconds"]) for run in record["runs"].values()]
        others = ", ".join(f"one of `experiment={name}`" for name in record.get("begins_from", []))
        begins = f" (RUN: {others})" if others else ""
        commits = ", ".join(dict.fromkeys(str(run["commit"]) for run in record["runs"].values()))
        lines += [
            "",
            f"### `{record['name']}`",
            "",
            f"`{record['command']}`{begins}: {figures.seeds(record)}; {', '.join(seconds)} of training; "
            f"commit {commits}; {record['precision']}, torch {record['versions']['torch']}."
            + "".join(f" {split}: {text}." for split, text in figures.adapted(record).items()),
            "",
            f"![validation and training by epoch]({record['name']}.png)",
        ]
    return "\n".join(lines)


_TABLES = ("engine", "language")  # sections whose first table is shown


def speed_tables(record: dict[str, Any]) -> str:
    """Every target with what was measured last, and the first table of the engine and of the language model."""
    sections = record["sections"]
    lines = []
    for section in _TABLES:
        if section in sections and sections[section]["tables"]:  # earlier versions kept one that measured nothing
            title, rows = next(iter(sections[section]["tables"].items()))
            names = [name for name in rows[0] if name != "spread"]  # of that time: a section may be an older bench's
            lines += [f"{title}:", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
            lines += ["| " + " | ".join(_rounded(row.get(name, "")) for name in names) + " |" for row in rows]
            lines.append("")
    lines += ["| what | measured | at least / at most, as the bench of that day asked | |", "|---|---|---|---|"]
    by_age = sorted(sections.values(), key=lambda section: section["when"])
    newest = {bar["name"]: bar for section in by_age for bar in section["bars"]}  # a bar may have moved elsewhere
    for section in sections.values():
        for bar in section["bars"]:
            if bar is newest[bar["name"]]:
                verdict = {True: "met", False: "missed", None: "not judged"}[bar["met"]]
                lines.append(f"| {bar['name']} | {_rounded(bar['measured'])} | {bar['bar']} | {verdict} |")
    machines: dict[str, list[str]] = {}  # sections by where they were measured, which can be several machines
    for name, section in sections.items():
        machines.setdefault(_machine(section["machine"]), []).append(name)
    for machine, names in machines.items():
        where = f" of {', '.join(names)}" if len(machines) > 1 else ""
        lines += ["", f"Machine{where}: {machine}."]
    return "\n".join(lines)


def _days(sections: Mapping[str, Any]) -> str:
    """When sections were measured, which can be several days: the code may have changed since."""
    by_day: dict[str, list[str]] = {}
    for name, section in sections.items():
        at = f" at {section['commit']}" if section.get("commit") else ""
        by_day.setdefault(f"{section['when'][:10]}{at}", []).append(name)
    return " and ".join(f"{day} ({', '.join(names)})" for day, names in sorted(by_day.items()))


def _repeats(sections: Mapping[str, Any]) -> str:
    """How often what was compared ran in the sections that did not run it as often as the command does by itself."""
    fewer: dict[int, list[str]] = {}
    for name, section in sections.items():
        if (count := section.get("repeats", figures.REPEATS)) != figures.REPEATS:
            fewer.setdefault(count, []).append(name)
    return "".join(f"; with `--repeats {count}`: {', '.join(names)}" for count, names in sorted(fewer.items()))


def _machine(facts: Mapping[str, Any]) -> str:
    cpu = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['vector']}, torch {facts['torch']}"
    )
    return f"{facts['gpu']}, {cpu}" if "gpu" in facts else cpu


def _rounded(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
