"""The leaderboard as text for a terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recur.leaderboard.columns import columns
from recur.leaderboard.reading import Result
from recur.leaderboard.table import Leaderboard, written
from recur.render import csv_cell, markdown_cell, printable, seconds_in_words
from recur.runs.metrics import metric


def titles(leaderboard: Leaderboard) -> list[str]:
    """Titles of the table's columns."""
    return [column.title for column in columns(leaderboard)]


def rows(leaderboard: Leaderboard) -> list[list[str]]:
    """The table, one row a group."""
    return _table(leaderboard)[1]


def _table(leaderboard: Leaderboard, limit: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Titles, and the rows of so many groups."""
    shown = columns(leaderboard)
    cells = [[column.text(leaderboard, group) for column in shown] for group in leaderboard.groups[:limit]]
    return [column.title for column in shown], cells


def as_text(leaderboard: Leaderboard, limit: int | None = None) -> str:
    """The leaderboard for a terminal.

    Args:
        leaderboard: what to show.
        limit: how many settings to show, and how many runs that failed; None for all.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    heads, shown = _table(leaderboard, limit)
    for title in heads:
        table.add_column(Text(printable(title)), no_wrap=True)
    for row in shown:
        table.add_row(*[Text(printable(cell)) for cell in row])  # settings may hold any text
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None, legacy_windows=False).print(table)
    lines = ["", *(line.rstrip() for line in out.getvalue().splitlines())]
    if rest := len(leaderboard.groups) - len(shown):
        lines.append(f"... and {rest} more settings")
    if len(leaderboard.tied) > 1:
        lines.append(f"{len(leaderboard.tied)} settings tie for the best {leaderboard.metric}")
    failed = [result for result in leaderboard.results if result.state == "failed"]
    named = failed[:limit]
    lines += [f"{_of_job(result)} failed, {result.reason}; log {result.log}" for result in named]
    if rest := len(failed) - len(named):
        lines.append(f"... and {rest} more failed")
    lines += leaderboard.differences()
    lines += [f"{leaderboard.states_text()}; {seconds_in_words(leaderboard.seconds)} of computing", ""]
    return "\n".join(map(printable, lines))


def as_markdown(leaderboard: Leaderboard) -> str:
    """The leaderboard as a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(markdown_cell, cells)) + " |"

    heads, cells = _table(leaderboard)
    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, cells)]) + "\n"


def as_csv(leaderboard: Leaderboard) -> str:
    """Every run in a line, for a spreadsheet: settings, state, all metrics, time, parameters, folder."""
    names = [name for name in written(leaderboard.results) if name != "seed"]
    keys = list(dict.fromkeys(key for result in leaderboard.results for key in result.settings if key != "seed"))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["sweep", "job", "state", "seed", *keys, *names, "folder"]
    writer.writerow(csv_cell(printable(title)) for title in head)
    for r in leaderboard.results:
        cells = [metric(r.record or {}, name) for name in names]
        settings = [r.settings.get(key, "") for key in keys]
        values = ["" if c is None else repr(c) for c in cells]
        row = [r.source, r.label, r.state, r.seed, *settings, *values, str(r.folder)]
        writer.writerow(csv_cell(printable(cell)) for cell in row)
    return text.getvalue()


def _of_job(result: Result) -> str:
    return f"job {result.label}" if result.source else result.label
