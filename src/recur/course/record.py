"""What was measured, as JSON: `claims.json`, from which the page and the README's table are written."""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recur.course.claim import Claim
from recur.course.experiment import shown_command
from recur.course.verdict import DEPENDS, FAILS, HOLDS, Confirmed, Observation, confirm, judge, overall
from recur.errors import UserError
from recur.runs.files import write_atomic
from recur.runs.metrics import provenance

# Of a claim, and no part of what is measured.
_TEXTS = ("number", "title", "guide", "says", "question", "because", "change", "minutes", "long")


def entry(
    claim: Claim,
    observations: Sequence[Observation],
    seconds: float,
    confirmed: Confirmed | None = None,
    origins: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A claim's part of the record.

    Args:
        claim: what was asked.
        observations: of all seeds.
        seconds: of computing that they took.
        confirmed: the outcome, where it was held against further seeds.
        origins: where and when each run was measured, as `recur.course.experiment.origins` has it; where there is
            none, this process has just measured it.
    """
    verdict, effects = (confirmed.verdict, confirmed.effects) if confirmed else judge(claim.rule, observations)
    seeds = sorted({one.seed for one in observations})
    further = seeds[len(claim.seeds) :] if confirmed else []
    return {
        "name": claim.name,
        **{key: getattr(claim, key) for key in (*_TEXTS, "measure", "quick", "key")},
        "verdict": verdict,
        "effects": [dataclasses.asdict(one) for one in effects],
        "observations": [dataclasses.asdict(one) for one in observations],
        "seeds": seeds,
        "further": confirmed and {"seeds": further, "first": confirmed.first, "means": confirmed.means},
        "seconds": round(seconds, 1),
        "command": shown_command(claim, len(further)),
        "chart": dict(claim.chart),
        "arms": arms(observations, claim.chart.get("columns", [])),
        **_origin(origins or [{**provenance(), "when": time.time()}]),
    }


def _origin(origins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where and when all of it was measured: what the last run says, and every commit and device there was."""
    last = max(origins, key=lambda one: one["when"])
    several = {
        key: ", ".join(dict.fromkeys(str(one[key]) for one in origins if one[key])) or None
        for key in ("commit", "device")
    }
    return {**last, **several, "when": time.strftime("%Y-%m-%d", time.gmtime(last["when"]))}


def arms(observations: Sequence[Observation], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Every arm, at every place on the x axis: how many seeds, and mean and standard deviation over them by measure."""
    groups: dict[tuple[str, str], list[Observation]] = {}
    for one in observations:
        groups.setdefault((one.arm, one.x), []).append(one)
    return [
        {
            "arm": arm,
            "x": x,
            "seeds": len(own),
            "measures": {
                name: [statistics.fmean(values), _deviation(values)]
                for name in measures
                if (values := [one.measures[name] for one in own if name in one.measures])
            },
        }
        for (arm, x), own in groups.items()
    ]


def _deviation(values: Sequence[float]) -> float:
    if not all(math.isfinite(value) for value in values):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


def read(path: Path) -> dict[str, Any]:
    """The record at `path`, an empty one where there is none.

    Raises:
        UserError: the file is none.
    """
    if not path.is_file():
        return {"format": 1, "claims": {}}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        known["claims"].keys()
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(str(path), rule="is no claims.json of recur.claims", remedy="move it away") from None
    return dict(known)


def update(path: Path, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put entries into the record at `path`; those of other claims stay."""
    known = read(path)
    known["claims"].update({one["name"]: one for one in entries})
    write_atomic(path, json.dumps(known, indent=1, allow_nan=True) + "\n")
    return known


def with_texts(record: Mapping[str, Any], claims: Mapping[str, Claim]) -> dict[str, Any]:
    """A record with the texts that the claims' files have today, where these ask what was measured.

    The texts of a rule's conditions stay: a condition that reads otherwise may compare something else, too.
    """
    return {**record, "claims": {name: _with_texts(one, claims.get(name)) for name, one in record["claims"].items()}}


def _with_texts(one: dict[str, Any], claim: Claim | None) -> dict[str, Any]:
    if claim is None or claim.key != one["key"]:
        return one
    command = shown_command(claim, len((one["further"] or {}).get("seeds", [])))
    return {**one, **{key: getattr(claim, key) for key in _TEXTS}, "command": command}


def judged_today(one: dict[str, Any], claim: Claim) -> dict[str, Any]:
    """A claim's part of the record with what its observations say by the rule that its file has today.

    Raises:
        UserError: they lack what the rule compares.
    """
    observations = [Observation(**each) for each in one["observations"]]
    further = set((one["further"] or {}).get("seeds", []))
    if not further:
        verdict, effects = judge(claim.rule, observations)
        return {**one, "verdict": verdict, "effects": [dataclasses.asdict(each) for each in effects]}
    first, more = ([o for o in observations if (o.seed in further) == later] for later in (False, True))
    confirmed = confirm(claim.rule, first, more)
    said = {**one["further"], "first": confirmed.first, "means": confirmed.means}
    shown = [dataclasses.asdict(each) for each in confirmed.effects]
    return {**one, "verdict": confirmed.verdict, "effects": shown, "further": said}


def effect_text(effect: dict[str, Any]) -> str:
    """`-0.121 [-0.144, -0.098]`, or one number where the seeds agree; a ratio is marked with a cross."""
    sign = "× " if effect["kind"] == "ratio" else ""
    low, high = effect["low"], effect["high"]
    if low == high:
        return f"{sign}{number_text(effect['estimate'])}"
    texts = _to_one_place((effect["estimate"], low, high), effect.get("bound"))
    return f"{sign}{texts[0]} [{texts[1]}, {texts[2]}]"


def _to_one_place(values: Sequence[float], bound: float | None) -> list[str]:
    """Middle, low and high end to one decimal place: two digits of the width, more where an end would look the bound.

    Three digits of each would make `[1, 1]` of an interval from 0.998 to 1.002, and hide on which side of 1 it lies.
    """
    _, low, high = values
    largest = max(map(abs, values))
    if not math.isfinite(high - low) or largest < 1e-3 or largest >= 1e5:
        return [number_text(value) for value in values]
    places = max(0, 1 - math.floor(math.log10(high - low)))
    while bound is not None and places < 9:
        if all(end == bound or round(end, places) != round(bound, places) for end in (low, high)):
            break
        places += 1
    return [f"{value:,.{places}f}" for value in values]


def number_text(value: float) -> str:
    """A number with three digits that count."""
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "-∞"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def table(record: dict[str, Any]) -> str:
    """Every claim, Markdown: claim, command, verdict, figures."""
    lines = ["| claim | command | verdict | effect, 95 % interval over seeds | seeds |", "|---|---|---|---|---|"]
    for one in _ordered(record):
        figures = "; ".join(f"{e['text']}: {effect_text(e)}" for e in one["effects"])
        mark = " (quick)" if one["quick"] else ""
        verdict = f"{one['verdict']}{mark}{_why(one)}"
        lines.append(f"| {one['title']} | `{one['command']}` | {verdict} | {figures} | {len(one['seeds'])} |")
    return "\n".join(lines)


def _why(one: Mapping[str, Any]) -> str:
    """Why a verdict is another than that of all seeds together; nothing where it is that."""
    further = one["further"]
    pooled = overall([effect["verdict"] for effect in one["effects"]])
    if not further or pooled == one["verdict"]:
        return ""
    if further["first"] != pooled:
        return f" (the first {len(one['seeds']) - len(further['seeds'])} seeds alone: {further['first']})"
    means = ", ".join(map(number_text, further["means"]))
    return f" (the further {len(further['seeds'])} seeds alone: {means})"


def arm_tables(record: dict[str, Any]) -> str:
    """The claims whose chart says `published: true`, arm by arm, Markdown: mean and deviation over seeds."""
    parts = []
    for one in _ordered(record):
        if not one["chart"].get("published"):
            continue
        columns = [str(name) for name in one["chart"]["columns"]]
        lines = [f"### {one['title']}", "", f"`{one['command']}`. {one['question']} {one['because']}".strip(), ""]
        lines += [f"| | {' | '.join(columns)} | seeds |", "|---" * (len(columns) + 2) + "|"]
        for arm in one["arms"]:
            cells = [_mean_text(arm["measures"].get(name)) for name in columns]
            lines.append(f"| {arm['arm']}{' ' * bool(arm['x'])}{arm['x']} | {' | '.join(cells)} | {arm['seeds']} |")
        parts.append("\n".join([*lines, "", f"On {one['device']}, torch {one['versions']['torch']}, {one['when']}."]))
    return "\n\n".join(parts)


def _mean_text(figures: Sequence[float] | None) -> str:
    """`1.620 ± 0.010`: the deviation with two digits at least, the mean to the same place."""
    if figures is None:
        return ""
    mean, deviation = figures
    if not deviation or not math.isfinite(mean):
        return f"{mean:,.0f}" if float(mean).is_integer() else number_text(mean)
    if not math.isfinite(deviation):
        return f"{number_text(mean)}, not finite in some seed"
    places = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:,.{places}f} ± {deviation:,.{places}f}"


def short_table(record: dict[str, Any]) -> str:
    """A line a verdict: the claims by the names that the command takes, each with its first figure."""
    lines = ["| verdict | `python -m recur.claims NAME`, and the first thing it compares |", "|---|---|"]
    for verdict in (HOLDS, DEPENDS, FAILS):
        own = [one for one in _ordered(record) if one["verdict"] == verdict]
        line = "; ".join(
            f"`{one['name']}` ({one['effects'][0]['text']}: {effect_text(one['effects'][0])})" for one in own
        )
        lines.append(f"| {verdict} | {line} |")
    return "\n".join(lines)


def _ordered(record: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(record["claims"].values(), key=lambda one: claim_order(one["number"]))


def claim_order(number: str) -> tuple[int, str]:
    """By the number in the course: `10, 12` after `9`."""
    digits = "".join(c for c in number.split(",")[0] if c.isdigit())
    return int(digits or 0), number
