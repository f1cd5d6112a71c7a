"""The leaderboard as a pandas DataFrame: `recur.compare("outputs")`."""

from pathlib import Path
from typing import TYPE_CHECKING

from recur.leaderboard.reading import numbers
from recur.leaderboard.table import Leaderboard

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


def compare(*folders: str | Path, metric: str | None = None, mode: str | None = None) -> "pd.DataFrame":
    """Rank runs and sweeps, as `python -m recur.results FOLDER ...` does.

    Args:
        folders: sweeps, runs, or folders with some below them.
        metric: by which to rank, such as `test/accuracy`; None for what the runs monitor.
        mode: `max` or `min`; None for the metric's own direction.

    Returns:
        One row a setting, the best first: the settings that differ, the mean of the metric and of its test split over
        seeds, `deviation` of the metric (NaN for one seed), `runs` that came to their end, the `state` and the
        `folders` of all, and where runs wrote them the means of `wall_seconds`, `parameters` and `peak_memory_mib`.

    Raises:
        UserError: there is no run, or none wrote the metric.
    """
    import pandas as pd

    leaderboard = Leaderboard.of(folders, metric, mode)
    columns: dict[str, list[object]] = {}
    for key in (*leaderboard.varied, *leaderboard.between):
        texts = [group.results[0].settings.get(key, group.settings.get(key, "")) for group in leaderboard.groups]
        columns[key] = list((numbers(texts) if key != "sweep" else None) or texts)
    columns[leaderboard.metric] = [group.mean for group in leaderboard.groups]
    columns["deviation"] = [group.deviation for group in leaderboard.groups]
    for name in (*leaderboard.also, "wall_seconds", "parameters", "peak_memory_mib"):
        if leaderboard.wrote(name) and name not in columns:
            columns[name] = [group.mean_of(name) for group in leaderboard.groups]
    columns["runs"] = [len(group.done) for group in leaderboard.groups]
    columns["state"] = [group.state for group in leaderboard.groups]
    columns["folders"] = [[str(result.folder) for result in group.results] for group in leaderboard.groups]
    frame = pd.DataFrame(columns)
    return frame.astype(dict.fromkeys((leaderboard.metric, "deviation"), float))  # None where there is no value
