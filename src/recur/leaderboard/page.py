"""The leaderboard as one HTML page that opens from disk: nothing is fetched, every text is escaped."""

import base64
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from recur.errors import UserError, reason
from recur.leaderboard.columns import Column, columns
from recur.leaderboard.plots import FILES, Plot, draw
from recur.leaderboard.reading import Result
from recur.leaderboard.table import Group, Leaderboard, brief, short
from recur.leaderboard.text import as_csv, as_markdown
from recur.render import is_page, seconds_in_words, templates
from recur.runs.files import check_links, write_atomic
from recur.runs.metrics import format_value, metric

_TEMPLATES = Path(__file__).with_name("templates")
_MOST_SETTINGS = 4  # that are named beside the best figure
_COMMAND = "recur.results"
_PAGE, _TABLE, _RUNS = "index.html", "leaderboard.md", "runs.csv"
_WRITTEN = (_PAGE, _TABLE, _RUNS, *FILES)
_UNFINISHED = f"""<!doctype html>
<meta charset="utf-8">
<meta name="generator" content="{_COMMAND}">
<title>recur.results</title>
<p>This page was not finished: call recur.results again.
"""


def check_out(folder: Path, remedy: str = "name another folder with --out") -> None:
    """Refuse a folder for the page that holds files of the same names which are not ours.

    Args:
        folder: for the page.
        remedy: what to do instead.

    Raises:
        UserError: names such a file.
    """
    if is_page(folder / _PAGE, _COMMAND):
        return
    theirs = sorted(path.name for path in folder.glob("*") if path.name in _WRITTEN) if folder.is_dir() else []
    if theirs:
        rule = f"holds {theirs[0]}, which recur.results did not write and would replace"
        raise UserError(str(folder), rule=rule, remedy=remedy)


def write(leaderboard: Leaderboard, folder: Path) -> Path:
    """Write the leaderboard, its plots and the page into a folder; return the page.

    Raises:
        UserError: the folder is a link, holds one, or cannot be written.
    """
    check_links(folder)
    if folder.is_symlink():
        raise UserError(str(folder), rule="is a link", remedy="name the folder that it points to with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_page(folder / _PAGE, _COMMAND):  # by which `check_out` knows the folder, should this be interrupted
            write_atomic(folder / _PAGE, _UNFINISHED)
        write_atomic(folder / _TABLE, as_markdown(leaderboard))
        write_atomic(folder / _RUNS, as_csv(leaderboard))
        write_atomic(folder / _PAGE, render(leaderboard, draw(leaderboard, folder), folder))
    except OSError as error:
        raise UserError(
            str(folder), rule=f"cannot be written ({reason(error)})", remedy="name another folder with --out"
        ) from error
    return folder / _PAGE


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        text: what it shows.
        sort: a number by which the page sorts, as text; empty sorts last, None sorts by the text.
        bar: length of a bar before the text in pixels, None for no bar.
    """

    text: str
    sort: str | None = None
    bar: int | None = None


def render(leaderboard: Leaderboard, plots: Sequence[Plot], folder: Path) -> str:
    """The page.

    Args:
        leaderboard: what to show.
        plots: its drawings.
        folder: into which the page will be written; links to runs are relative to it.
    """
    from markupsafe import Markup

    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Should a text of the data get through all the same: nothing is fetched, and no script runs but this one.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = columns(leaderboard)
    name = " and ".join("/".join(source.folder.resolve().parts[-2:]) for source in leaderboard.sources[:3])
    more = len(leaderboard.sources) - 3
    several = len({result.source for result in leaderboard.results}) > 1
    return templates(_TEMPLATES).get_template("page.html.jinja").render(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=Markup(style),  # noqa: S704 (files of this package)
        script=Markup(script),  # noqa: S704
        title=f"{leaderboard.metric} · {name}" + (f" and {more} more" if more > 0 else ""),
        lines=[
            *[str(s.header["command"]) for s in leaderboard.sources if "command" in s.header],
            *leaderboard.differences(),
        ],
        tiles=list(_tiles(leaderboard)),
        columns=shown,
        rows=[{"kind": _kind(leaderboard, group), "cells": list(_cells(leaderboard, group, shown))}
              for group in leaderboard.groups],
        plots=plots,
        unfinished=[r for r in leaderboard.results if r.state in ("failed", "stopped", "unfinished")],
        several=several,
        run_titles=["sweep"] * several + ["job", "state", leaderboard.metric, *_own_names(leaderboard),
                                          "seed", "epochs", "time"],
        runs=[_run(leaderboard, group, result) for group in leaderboard.groups for result in group.results],
        # `#` and `?` are letters in a path, and not every name of a file is UTF-8.
        link=lambda path: quote(os.fsencode(os.path.relpath(path, folder))),
    )  # fmt: skip


def _kind(leaderboard: Leaderboard, group: Group) -> str:
    return group.state if group.mean is None else "best" if leaderboard.rank(group) == "1" else ""


def _cells(leaderboard: Leaderboard, group: Group, shown: Sequence[Column]) -> Iterator[Cell]:
    for column in shown:
        value = None if column.number is None else column.number(group)
        sort = None if column.number is None else "" if value is None else repr(value)
        yield Cell(column.text(leaderboard, group), sort, _bar(leaderboard, value) if column.bar else None)


def _bar(leaderboard: Leaderboard, value: float | None) -> int | None:
    if value is None or leaderboard.extremes is None:
        return None
    low, high = leaderboard.extremes
    return round(6 + 54 * (value - low) / (high - low)) if low < high else None


def _tiles(leaderboard: Leaderboard) -> Iterator[tuple[str, str]]:
    best, tied = leaderboard.best, leaderboard.tied
    if best is not None:
        seeds = f" over {len(best.of_seeds)} seeds" if len(best.of_seeds) > 1 else ""
        ceiling = leaderboard.ceiling
        known = f"; the best possible is {format_value(leaderboard.metric, ceiling)}" if ceiling is not None else ""
        yield best.result_text(leaderboard.metric), f"best {leaderboard.metric}{seeds}{known}"
        if len(tied) > 1:
            yield f"tie of {len(tied)} settings", "they share the best mean"
        else:
            given = {key: brief(value) for key, value in best.settings.items() if value}
            shown = list(given)[:_MOST_SETTINGS]
            names = [short(key, given) for key in shown]
            more = f", and {len(given) - len(shown)} more" if len(given) > len(shown) else ""
            yield ", ".join(given[key] for key in shown) or "as configured", (", ".join(names) or "settings") + more
        seconds, count = best.mean_of("wall_seconds"), best.mean_of("parameters")
        if seconds is not None and count is not None:
            yield seconds_in_words(seconds), f"a run of the best, {count:,.0f} parameters"
    computing = f"{leaderboard.states_text()}; {seconds_in_words(leaderboard.seconds)} of computing"
    yield f"{len(leaderboard.results)} runs", computing


def _own_keys(leaderboard: Leaderboard) -> list[str]:
    return [key for key in leaderboard.varied if key != "sweep"]


def _own_names(leaderboard: Leaderboard) -> list[str]:
    return [short(key, leaderboard.varied) for key in _own_keys(leaderboard)]


def _run(leaderboard: Leaderboard, group: Group, result: Result) -> dict[str, Any]:
    """A row of the table of all runs."""
    record = result.record or {}
    seconds = metric(record, "wall_seconds")
    seconds = seconds if seconds is not None and math.isfinite(seconds) else None
    cells = [
        Cell(format_value(leaderboard.metric, result.value), "" if result.value is None else repr(result.value)),
        *[Cell(brief(group.settings[key])) for key in _own_keys(leaderboard)],
        Cell(result.seed),
        Cell(format_value("epochs", metric(record, "epochs"))),
        Cell("", "") if seconds is None else Cell(seconds_in_words(seconds), repr(seconds)),
    ]
    return {
        "source": result.source, "label": result.label, "folder": result.folder, "state": result.state, "cells": cells
    }  # fmt: skip
