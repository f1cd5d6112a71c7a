"""The page of the claims: one file, nothing fetched, no script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recur.course import charts
from recur.course.blocks import blocks
from recur.course.record import claim_order, effect_text, number_text
from recur.render import seconds_in_words, templates
from recur.runs.files import write_atomic

_MEANING = {
    "holds": "every comparison is on the side that the claim says, with its whole 95 % interval",
    "fails": "no comparison is on that side, and at least one is on the other with its whole interval",
    "depends": (
        "the comparisons disagree, their intervals leave it open, all seeds say otherwise than the first, or the "
        "further seeds' own mean lies on the other side of a bound"
    ),
}


def write(record: Mapping[str, Any], path: Path) -> None:
    """Write the page of a record to `path`."""
    claims = sorted(record["claims"].values(), key=lambda one: claim_order(one["number"]))
    shown = [_shown(one) for one in claims]
    counts = {verdict: sum(one["verdict"] == verdict for one in claims) for verdict in _MEANING}
    page = (
        templates(Path(__file__).parent / "templates")
        .get_template("claims.html")
        .render(
            claims=shown,
            counts=counts,
            meaning=_MEANING,
            quick=any(one["quick"] for one in claims),
            total=seconds_in_words(sum(one["seconds"] for one in claims)),
            blocks=blocks(),
        )
    )
    write_atomic(path, page)


def _shown(one: Mapping[str, Any]) -> dict[str, Any]:
    effects = [
        {
            "text": e["text"],
            "figure": effect_text(e),
            "bound": f"{e['direction']} {'× ' if e['kind'] == 'ratio' else ''}{number_text(e['bound'])}",
            "verdict": e["verdict"],
        }
        for e in one["effects"]
    ]
    failures = sorted({o["reason"] for o in one["observations"] if o["reason"]})
    return {
        **one,
        "shown_effects": effects,
        "chart": chart(one["observations"], one["chart"]),
        "table": _table(one["observations"], one["chart"]),
        "time": seconds_in_words(one["seconds"]),
        "failures": failures[:3],
        "anchor": one["name"],
    }


def chart(observations: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The claim's chart as SVG: by a point of the run (`curve`), by x (`x`), or a column an arm (`arms`)."""
    kind, measure = settings.get("kind", "arms"), settings.get("y", "")
    arms = list(dict.fromkeys(o["arm"] for o in observations))
    series = {arm: charts.Series(arm) for arm in arms}
    names = [] if kind != "x" else _words([str(one["x"]) for one in observations])
    x_name = settings.get("x", "epoch")
    for one in observations:
        if kind == "curve":
            points = [(point[x_name], point[measure]) for point in one["curve"] if measure in point and x_name in point]
        elif measure not in one["measures"]:
            points = []
        elif kind == "x":
            place = names.index(str(one["x"])) if names else one["x"]
            points = [(float(place), one["measures"][measure])]
        else:
            points = [(float(arms.index(one["arm"])), one["measures"][measure])]
            names = arms
        for x, y in points:
            series[one["arm"]].points.setdefault(float(x), []).append(float(y))
    if kind == "table":
        return ""
    for name, own in (settings.get("reference") or {}).items():  # a curve of someone else's, such as a guide's log
        series[name] = charts.Series(name, {float(x): [float(y)] for x, y in own})
    marks = {float(y): str(text) for y, text in (settings.get("line") or {}).items()}
    return charts.lines(
        list(series.values()),
        settings.get("x_label", ""),
        settings.get("y_label", measure),
        marks=marks,
        names=names,
        log_y=bool(settings.get("log", False)),
    )


def _words(places: Sequence[str]) -> list[str]:
    """Places of an x axis in their order, where they are words; nothing where they are numbers."""
    try:
        [float(place) for place in places]
    except ValueError:
        return list(dict.fromkeys(places))
    return []


def _table(observations: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Mean over seeds of the chart's measures, a row an arm and x: what the chart shows, for who cannot see it."""
    columns = [str(name) for name in settings.get("columns", [settings.get("y", "")]) if name]
    with_x = any(o["x"] for o in observations)
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in observations:
        own = rows.setdefault((one["arm"], one["x"]), {})
        for name in columns:
            if name in one["measures"]:
                own.setdefault(name, []).append(float(one["measures"][name]))
    lines = [
        [
            arm,
            *([x] if with_x else []),
            *(number_text(sum(own[name]) / len(own[name])) if name in own else "" for name in columns),
        ]
        for (arm, x), own in rows.items()
    ]
    return {"head": ["", *([settings.get("x_label", "x")] if with_x else []), *columns], "rows": lines}
