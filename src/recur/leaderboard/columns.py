"""The columns of the leaderboard: one object each, in the order in which they stand.

To add one, add it to `MEASURES` or `RESOURCES`; the text for a terminal, the Markdown file and the page read this list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recur.leaderboard.table import Group, Leaderboard, brief, short
from recur.render import seconds_in_words
from recur.runs.metrics import format_value


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: above it.
        text: a group's cell.
        number: by which the page sorts; None sorts by the text.
        shown: whether the leaderboard has matter for it.
        bar: whether the page draws the number as a bar.
    """

    title: str
    text: Callable[[Leaderboard, Group], str]
    number: Callable[[Group], float | None] | None = None
    shown: Callable[[Leaderboard], bool] = lambda leaderboard: True
    bar: bool = False


def metric_column(name: str) -> Column:
    """The mean of a metric over seeds; shown where a run wrote it and the runs are not ranked by it."""
    return Column(
        name,
        lambda leaderboard, group: format_value(name, group.mean_of(name)),
        lambda group: group.mean_of(name),
        lambda leaderboard: leaderboard.wrote(name) and name != leaderboard.metric,
    )


def _time(leaderboard: Leaderboard, group: Group) -> str:
    seconds = group.mean_of("wall_seconds")
    return "" if seconds is None else seconds_in_words(seconds)


def _memory(leaderboard: Leaderboard, group: Group) -> str:
    mib = group.mean_of("peak_memory_mib")
    return "" if mib is None else f"{mib:,.0f} MiB"


def _value_column(name: str) -> Column:
    """The metric by which runs are ranked."""
    return Column(name, lambda leaderboard, group: group.result_text(name), lambda group: group.mean, bar=True)


def _setting_column(key: str, others: Sequence[str]) -> Column:
    return Column(short(key, others), lambda leaderboard, group: brief(group.settings[key]))


def _settings(keys: Sequence[str]) -> list[Column]:
    return [_setting_column(key, keys) for key in keys]


RANK = Column("rank", lambda leaderboard, group: leaderboard.rank(group))
MEASURES = (metric_column("val/balanced_accuracy"),)  # before the settings
RESOURCES = (  # after them
    Column("runs", lambda leaderboard, group: group.runs_text()),
    Column("time", _time, lambda group: group.mean_of("wall_seconds")),
    metric_column("parameters"),
    Column(
        "memory",
        _memory,
        lambda group: group.mean_of("peak_memory_mib"),
        lambda leaderboard: leaderboard.wrote("peak_memory_mib"),
    ),
)


def columns(leaderboard: Leaderboard) -> list[Column]:
    """The columns of a leaderboard, in order."""
    ranked = [RANK, _value_column(leaderboard.metric), *map(metric_column, leaderboard.also)]
    measures = [column for column in MEASURES if column.title not in leaderboard.also]
    every = [*ranked, *measures, *_settings(leaderboard.varied), *RESOURCES]
    return [column for column in every if column.shown(leaderboard)]
