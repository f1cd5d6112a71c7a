"""The command of the course's claims: `python -m recur.claims [NAME ...]`.

Runs what is missing, prints a line a claim (verdict, effects with a 95 % interval over seeds, cost), and writes one
page with all of them. `--quick` shrinks data, seeds and training: to try it, never to quote.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur import cli

if TYPE_CHECKING:
    from recur.course.claim import Claim


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.claims`."""
    arguments = _parser().parse_intermixed_args(argv)
    cli.guard(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="recur.claims",
        description="Measure the claims of the course: a verdict and an effect for each, and one page.",
        epilog="example: python -m recur.claims rnn_forgets",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="claims, KEY=VALUE for their runs; default: all short")
    parser.add_argument("--list", action="store_true", help="list the claims and stop")
    parser.add_argument("--quick", action="store_true", help="small data and few seeds: to try it, not to quote it")
    parser.add_argument(
        "--further",
        type=_count,
        default=0,
        metavar="N",
        help="also on N (at least 2) more seeds: a verdict that turns is `depends`",
    )
    parser.add_argument("--out", default="outputs/claims", help="folder of runs, claims.json and the page")
    parser.add_argument("--publish", metavar="FOLDER", help="also put them into claims.json there, for `make results`")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seeds from 2 to 100")
    return int(text)


def _run(arguments: argparse.Namespace) -> None:
    from recur.config.compose import conf_dir
    from recur.course import claim as claims
    from recur.course import page, record
    from recur.errors import UserError

    folder = conf_dir() / "claims"
    chosen = [word for word in arguments.names if "=" not in word]
    extra = [word for word in arguments.names if "=" in word]
    if extra and not chosen:
        raise UserError(extra[0], rule="is for runs of a claim", remedy="name the claim too")
    loaded = [claims.load(folder, name, quick=arguments.quick) for name in chosen or claims.names(folder)]
    loaded = [claims.changed(one, extra) for one in loaded]
    extra = [word for word in extra if claims.is_place(word)]
    if arguments.list:
        for one in sorted(loaded, key=lambda c: c.name):
            print(f"{one.name:<28} {one.title}{' (long)' if one.long else ''}")
        return
    if not chosen:
        loaded = [one for one in loaded if not one.long]
    out = Path(arguments.out)
    where = out / ("quick" if arguments.quick else "full")
    for place in [where, *([Path(arguments.publish)] if arguments.publish else [])]:
        record.read(place / "claims.json")  # refused before hours of measuring
    where.mkdir(parents=True, exist_ok=True)
    entries, troubles = [], []
    for one in loaded:
        try:
            measured = _measure(one, where, extra, arguments.further)
        except UserError as error:
            if len(loaded) == 1:
                raise
            troubles.append(f"{one.name}: {error}")
            print(f"{one.name:<28} not measured: {error}", flush=True)
            continue
        entries.append(measured)
        record.update(where / "claims.json", [measured])
    if not entries:
        raise UserError("", rule="nothing was measured", remedy="; ".join(troubles))
    content = record.read(where / "claims.json")
    page.write(content, where / "index.html")
    print(f"page       {where / 'index.html'}")
    if arguments.publish:
        _publish(content, Path(arguments.publish))
    if troubles:
        raise SystemExit(1)


def _measure(one: "Claim", where: Path, extra: list[str], further: int) -> dict[str, Any]:
    from recur.course import experiment, record, verdict
    from recur.render import seconds_in_words

    observations, seconds = experiment.observe(one, where, extra)
    origins = experiment.origins(one, where)
    confirmed = None
    if further:
        more, cost = experiment.observe(one.further(further), where, extra)
        origins += experiment.origins(one.further(further), where)
        confirmed = verdict.confirm(one.rule, observations, more)
        observations, seconds = [*observations, *more], seconds + cost
    measured = record.entry(one, observations, seconds, confirmed, origins)
    outcome = measured["verdict"]
    figures = "; ".join(f"{e['text']} {record.effect_text(e)}" for e in measured["effects"])
    quick = "quick, " if one.quick else ""
    turned = f", was {confirmed.first} on the first seeds" if confirmed and confirmed.first != outcome else ""
    print(f"{one.name:<28} {outcome:<8} {figures} ({quick}{seconds_in_words(seconds)}{turned})", flush=True)
    return measured


def _publish(content: dict[str, Any], folder: Path) -> None:
    from recur.config.compose import conf_dir
    from recur.course import claim, record
    from recur.errors import UserError
    from recur.runs.files import write_atomic

    claims: dict[str, Any] = content["claims"]
    today = {name: claim.load(conf_dir() / "claims", name) for name in claims}
    if other := sorted(name for name, one in claims.items() if not one["quick"] and one["key"] != today[name].key):
        raise UserError("--publish", rule=f"refuses {other[0]}, which ran with other settings than its file has")
    if quick := sorted(name for name, one in claims.items() if one["quick"]):
        raise UserError("--publish", rule=f"refuses quick figures ({quick[0]})", remedy="run without --quick")
    # Those that were measured by an earlier command, and whose rule has been changed since, are judged again, too.
    slim = {name: {**record.judged_today(one, today[name]), "observations": []} for name, one in claims.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "claims.json"
    before = record.read(path)["claims"]
    write_atomic(path, json.dumps({**content, "claims": before | slim}, indent=1) + "\n")
    print(f"published  {folder / 'claims.json'}; `make results` writes the tables from it")


if __name__ == "__main__":
    main()
