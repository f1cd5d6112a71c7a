"""The leaderboard of a sweep: its runs read back from their folders, grouped over seeds, ranked, and told."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recur.render import csv_cell, figure, markdown_cell, printable, seconds_in_words
from recur.runs import journal
from recur.runs.limits import read_yaml
from recur.runs.metrics import direction, metric, metric_names, read_record

_COLUMNS = 6  # of settings; a comparison with more says less
_STATES = ("done", "pruned", "failed", "stopped", "unfinished")


@dataclass
class Result:
    """One run of a sweep.

    Attributes:
        sweep: its sweep's folder in a word.
        number: of the job.
        folder: of the run.
        state: `done`, `pruned`, `failed`, `stopped` or `unfinished`.
        settings: its overrides, key to text.
        record: its `metrics.json`, None where it has none.
        value: the metric, None where it has none.
        reason: of a failure.
        curve: its validations.
    """

    sweep: str
    number: int
    folder: Path
    state: str
    settings: dict[str, str]
    record: dict[str, Any] | None
    value: float | None = None
    reason: str = ""
    curve: Sequence[Mapping[str, Any]] = ()

    @property
    def seed(self) -> str:
        """The run's seed as text."""
        known = self.settings.get("seed", "" if self.record is None else self.record.get("seed", ""))
        return str(known)

    def points(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of a metric at every validation."""
        return [
            (e["epoch"], e["metrics"][name]) for e in self.curve if isinstance(e["metrics"].get(name), (int, float))
        ]


@dataclass
class Group:
    """Runs that differ in nothing but their seed."""

    settings: dict[str, str]
    results: list[Result]

    @property
    def done(self) -> list[Result]:
        """Those that came to their end with a value."""
        return [result for result in self.results if result.state == "done" and result.value is not None]

    @property
    def mean(self) -> float | None:
        """Mean of the metric over seeds."""
        values = [result.value for result in self.done if result.value is not None]
        return statistics.fmean(values) if values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None for one seed."""
        values = [result.value for result in self.done if result.value is not None]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def state(self) -> str:
        """`done` where any run is, else what most of them are."""
        states = [result.state for result in self.results]
        return "done" if "done" in states else max(states, key=states.count)

    def of(self, name: str) -> float | None:
        """Mean of another metric over the finished seeds."""
        values = [v for result in self.done if (v := metric(result.record or {}, name)) is not None]
        return statistics.fmean(values) if values else None

    def result_text(self) -> str:
        """`0.9312 ± 0.0041`, or the state where nothing came to its end."""
        if self.mean is None:
            best = next((r.value for r in self.results if r.value is not None), None)
            return self.state + (f" at {figure(best)}" if best is not None else "")
        mean, deviation = figure(self.mean), self.deviation
        if deviation is None:
            return mean
        return f"{mean} ± " + (f"{deviation:.4f}" if mean.rpartition(".")[2].isdecimal() else figure(deviation))

    def label(self) -> str:
        """Its settings in a few words."""
        return ", ".join(f"{short(key)}={brief(value)}" for key, value in self.settings.items()) or "as configured"


def short(key: str) -> str:
    """The last part of a setting's name."""
    return key.lstrip("+~").rpartition(".")[2]


def brief(text: str) -> str:
    """A setting's value; a long number with four digits that count."""
    try:
        return f"{float(text):.4g}" if len(text) > 7 else text
    except ValueError:
        return text


class Leaderboard:
    """What one or several sweeps found.

    Attributes:
        folders: of the sweeps.
        headers: first lines of their manifests.
        metric: by which runs are ranked.
        mode: `max` or `min`.
        results: every run.
        varied: settings that differ between runs, without the seed.
        between: settings that differ between sweeps and in none, where they are too many for columns.
        groups: runs by setting, the best first.
    """

    def __init__(
        self, folders: list[Path], headers: list[dict[str, Any]], results: list[Result], metric: str, mode: str
    ) -> None:
        self.folders, self.headers, self.results, self.metric, self.mode = folders, headers, results, metric, mode
        rows = [dict(result.settings) for result in results]
        if len(folders) > 1:
            rows = [{"sweep": result.sweep, **row} for result, row in zip(results, rows, strict=True)]
        keys = [key for key in varied_keys(rows) if key != "seed"]
        inside = {key for name in {r.sweep for r in results} for key in varied_keys(_of(results, name))}
        constant = [key for key in keys if key not in inside and key != "sweep"]
        self.between = constant if len(keys) > _COLUMNS and len(folders) > 1 else []
        self.varied = [key for key in keys if key not in self.between]
        found: dict[tuple[str, ...], Group] = {}
        for result, row in zip(results, rows, strict=True):
            settings = {key: row.get(key, "") for key in self.varied}
            found.setdefault(tuple(settings.values()), Group(settings, [])).results.append(result)
        order = {"done": 0, "pruned": 1, "unfinished": 2, "stopped": 3, "failed": 4}
        sign = -1 if mode == "max" else 1
        self.groups = sorted(
            found.values(), key=lambda g: (order[g.state], sign * g.mean if g.mean is not None else 0.0)
        )

    @classmethod
    def of(cls, folders: Sequence[str | Path], metric: str | None = None, mode: str | None = None) -> "Leaderboard":
        """Read sweeps back.

        Raises:
            ValueError: a folder is no sweep, nothing in it ran, or no run wrote the metric.
        """
        paths = list({Path(folder).expanduser().absolute(): Path(folder).expanduser() for folder in folders}.values())
        events = [journal.read(path) for path in paths]
        headers = [found[0] for found in events]
        wanted = metric or str(headers[0]["monitor"])
        results = [
            result
            for path, name, found in zip(paths, _names([path.absolute() for path in paths]), events, strict=True)
            for result in _results(path, name, found, wanted)
        ]
        if not results:
            raise ValueError(f"no job of {', '.join(map(str, paths))} has run yet")
        written = dict.fromkeys(name for r in results if r.record is not None for name in metric_names(r.record))
        if metric is not None and metric not in written:
            known = f": they wrote {', '.join(written)}" if written else "; none has come to its end"
            raise ValueError(f"no job wrote the metric {metric!r}{known}")
        if len(paths) > 1:
            _fill_from_configs(results)
        if mode is None:
            same = wanted == headers[0]["monitor"]
            mode = str(headers[0]["mode"]) if same else direction(wanted)
        return cls(paths, headers, results, wanted, mode)

    @property
    def best(self) -> Group | None:
        """The first group that came to its end."""
        return self.groups[0] if self.groups and self.groups[0].mean is not None else None

    def count(self, state: str) -> int:
        """Runs in this state."""
        return sum(result.state == state for result in self.results)

    @property
    def missing(self) -> int:
        """Jobs that never began."""
        return max(0, sum(int(header.get("jobs", 0)) for header in self.headers) - len(self.results))

    def states_text(self) -> str:
        """`7 done, 1 failed`."""
        parts = [f"{n} {s}" for s in ("done", "pruned", "failed", "stopped", "unfinished") if (n := self.count(s))]
        return ", ".join(parts + ([f"{self.missing} not started"] if self.missing else []))

    @property
    def seconds(self) -> float:
        """Time all runs took together."""
        return sum(v for r in self.results if (v := metric(r.record or {}, "wall_seconds")) is not None)

    def importance(self) -> dict[str, float]:
        """Share of the metric's variance between runs that each setting explains alone, from 0 to 1, largest first.

        Between-group over total sum of squares; more than six numbers are put into five bins of equal count. With few
        runs per value chance explains much too.
        """
        done = [(g.settings, r.value) for g in self.groups for r in g.done if r.value is not None]
        if len(done) < 4:
            return {}
        values = [value for _, value in done]
        mean = statistics.fmean(values)
        total = sum((value - mean) ** 2 for value in values)
        if total == 0:
            return {}
        shares = {}
        for key in self.varied:
            parts: dict[Any, list[float]] = {}
            for bin_of, value in zip(_bins([settings[key] for settings, _ in done]), values, strict=True):
                parts.setdefault(bin_of, []).append(value)
            if 1 < len(parts) < len(values):
                shares[key] = sum(len(p) * (statistics.fmean(p) - mean) ** 2 for p in parts.values()) / total
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def columns(self) -> list[str]:
        """Titles of the leaderboard."""
        also = [self.also] if self.also else []
        return ["rank", self.metric, *also, *map(short, self.varied), "runs", "time", "parameters"]

    def differences(self) -> list[str]:
        """What each sweep set that the others set otherwise, beside what the columns show."""
        firsts = {result.sweep: result.settings for result in reversed(self.results)}
        return [
            f"{name}: " + ", ".join(f"{short(key)}={brief(settings.get(key, ''))}" for key in self.between)
            for name, settings in reversed(firsts.items())
            if self.between
        ]

    @property
    def also(self) -> str | None:
        """The same metric on the test split, where it was scored."""
        name = "test/" + self.metric.rpartition("/")[2]
        known = name != self.metric and any(metric(r.record or {}, name) is not None for r in self.results)
        return name if known else None

    def rows(self) -> list[list[str]]:
        """The leaderboard."""
        rows = []
        for rank, group in enumerate(self.groups, start=1):
            seconds, count = group.of("wall_seconds"), group.of("parameters")
            rows.append(
                [
                    str(rank) if group.mean is not None else "",
                    group.result_text(),
                    *([figure(group.of(self.also))] if self.also else []),
                    *map(brief, group.settings.values()),
                    _runs_text(group),
                    seconds_in_words(seconds) if seconds is not None else "",
                    f"{count:,.0f}" if count is not None else "",
                ]
            )
        return rows

    def as_text(self, limit: int | None = None) -> str:
        """The leaderboard for a terminal."""
        rows = self.rows()
        shown = rows if limit is None else rows[:limit]
        table = [self.columns(), *shown]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "",
            *["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table],
        ]
        if len(shown) < len(rows):
            lines.append(f"... and {len(rows) - len(shown)} more settings")
        lines += [
            f"job {result.number} failed, {result.reason}; log {result.folder / 'output.log'}"
            for result in self.results
            if result.state == "failed"
        ]
        lines += self.differences()
        lines += [f"{self.states_text()}; {seconds_in_words(self.seconds)} of computing", ""]
        return "\n".join(map(printable, lines))  # settings are whatever somebody typed

    def as_markdown(self) -> str:
        """The leaderboard as a Markdown table."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(map(markdown_cell, cells)) + " |"

        rule = "|" + "---|" * len(self.columns())
        return "\n".join([line(self.columns()), rule, *map(line, self.rows())]) + "\n"

    def as_csv(self) -> str:
        """Every run in a line, for a spreadsheet: settings, state, all metrics, time, parameters, folder."""
        names = list(dict.fromkeys(n for r in self.results if r.record is not None for n in metric_names(r.record)))
        names = [name for name in names if name != "seed"]
        keys = list(dict.fromkeys(key for result in self.results for key in result.settings if key != "seed"))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(csv_cell, ["sweep", "job", "state", "seed", *keys, *names, "folder"]))
        for r in self.results:
            cells = [metric(r.record or {}, name) for name in names]
            settings = [r.settings.get(key, "") for key in keys]
            values = ["" if c is None else repr(c) for c in cells]
            row = [r.sweep, str(r.number), r.state, r.seed, *settings, *values, str(r.folder)]
            writer.writerow(map(csv_cell, row))
        return text.getvalue()


def _of(results: Sequence[Result], sweep: str) -> list[dict[str, str]]:
    return [result.settings for result in results if result.sweep == sweep]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and of as many parts before it as tell one from another."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]).lstrip("/") for path in paths]


def _results(folder: Path, name: str, events: list[dict[str, Any]], wanted: str) -> list[Result]:
    starts = {event["job"]: event for event in events if event["event"] == "start"}
    ends: dict[int, dict[str, Any]] = {}
    for event in events:  # the last word about a job counts, unless it was begun again since
        if event["event"] == "end":
            ends[event["job"]] = event
        elif event["event"] == "start":
            ends.pop(event["job"], None)
    found = []
    for number, start in sorted(starts.items()):
        run = folder / start["folder"]
        record = read_record(run)
        end = ends.get(number, {})
        state = str(end.get("state")) if end.get("state") in _STATES else "unfinished"
        if record is not None and state != "failed":
            state = "pruned" if record.get("pruned") else "done"
        settings = {}
        for text in start["overrides"]:
            key, _, setting = str(text).partition("=")
            if key != "sweep":  # only says where the others come from
                settings[key] = setting
        value = metric(record, wanted) if record is not None else None
        if value is not None and not math.isfinite(value):
            state, value = "failed", None
        reason = str(end.get("reason", "")) or ("the metric is not finite" if state == "failed" else "")
        found.append(
            Result(name, number, run, state, settings, record, value, reason, tuple(journal.read_validations(run)))
        )
    return found


def _fill_from_configs(results: list[Result]) -> None:
    """Settings that another sweep varied and this one left as configured, from the runs' own configs."""
    typed: dict[str, list[str]] = {}
    for result in results:
        for key, text in result.settings.items():
            typed.setdefault(key, []).append(text)
    for result in results:
        lacking = [key for key in typed if key not in result.settings]
        if lacking:
            config, choices = _plain_config(result.folder), _choices(result.folder)
            for key in lacking:
                value = choices.get(key, _at(config, key.lstrip("+~")))
                if isinstance(value, (str, int, float, bool)):
                    result.settings[key] = _as_typed(str(value), typed[key])


def _plain_config(folder: Path) -> Any:
    """A run's `config.yaml` as it stands there, nothing in it resolved; None where it is none."""
    try:
        return read_yaml(folder / "config.yaml")
    except (OSError, ValueError):
        return None


def _choices(folder: Path) -> dict[str, Any]:
    """The options of groups that a run was composed of."""
    try:
        found = _at(read_yaml(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.choices")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _at(node: Any, path: str) -> Any:
    """A value in plain containers, None where there is none."""
    for part in path.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _as_typed(text: str, typed: Sequence[str]) -> str:
    """`0` for `0.0` where somebody typed it so: one value is one text."""
    same = (other for other in typed if numbers([text, other]) and float(other) == float(text))
    return next(same, text)


def _runs_text(group: Group) -> str:
    bad = {
        s: n for s in ("pruned", "failed", "stopped", "unfinished") if (n := [r.state for r in group.results].count(s))
    }
    parts = [str(len(group.done))] if group.done else []
    return ", ".join(parts + [f"{n} {state}" for state, n in bad.items()])


def numbers(texts: Sequence[str]) -> list[float] | None:
    """Texts as numbers, None where one is none."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _bins(texts: Sequence[str]) -> list[Any]:
    values = numbers(texts)
    if values is None or len(set(values)) <= 6:
        return list(texts)
    ranks = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return [ranks[value] * 5 // len(ranks) for value in values]


def varied_keys(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose values differ between rows, in the order of their first appearance."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]
