"""The leaderboard: runs grouped over seeds and ranked."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recur.errors import UserError
from recur.leaderboard.reading import Result, Source, add_differences, fill_from_configs, find_sources
from recur.runs.metrics import direction, format_value, metric, metric_info, metric_names

_MOST_COLUMNS = 6  # of settings; a comparison with more says less
_MOST_NAMES = 3  # of what was left out
_OWN_COLUMN = ("wall_seconds", "parameters", "peak_memory_mib")  # which every leaderboard has
_TOLERANCE = 1e-3  # by which a shown setting may differ from the real one
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
STATES = ("done", "pruned", "unfinished", "stopped", "failed")  # in the order of the leaderboard


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seed; what is asked of them often is computed once."""

    settings: Mapping[str, str]
    results: Sequence[Result]

    @cached_property
    def done(self) -> list[Result]:
        """Those that came to their end with a value."""
        return [result for result in self.results if result.state == "done" and result.value is not None]

    @cached_property
    def of_seeds(self) -> list[float]:
        """The metric of each seed that came to its end: runs that repeat a seed count once, by their mean."""
        return self._of_seeds([result.value for result in self.done])

    def _of_seeds(self, values: Sequence[float | None]) -> list[float]:
        """Means over the runs of each seed of what the finished runs have, without those that have none."""
        seeds: dict[str, list[float]] = {}
        for result, value in zip(self.done, values, strict=True):
            if value is not None and math.isfinite(value):
                seeds.setdefault(result.seed, []).append(value)
        return [statistics.fmean(seed) for seed in seeds.values()]

    @cached_property
    def mean(self) -> float | None:
        """Mean of the metric over seeds."""
        return statistics.fmean(self.of_seeds) if self.of_seeds else None

    @cached_property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None for one seed."""
        return statistics.stdev(self.of_seeds) if len(self.of_seeds) > 1 else None

    @cached_property
    def state(self) -> str:
        """`done` where any run is, else what most of them are."""
        states = [result.state for result in self.results]
        return "done" if "done" in states else max(states, key=states.count)

    def mean_of(self, name: str) -> float | None:
        """Mean of another metric over the finished seeds, None where none wrote it."""
        known = self._of_seeds([metric(result.record or {}, name) for result in self.done])
        return statistics.fmean(known) if known else None

    def result_text(self, name: str) -> str:
        """`93.12 ± 0.41 %`, or the state where nothing came to its end."""
        if self.mean is None:
            best = next((r.value for r in self.results if r.value is not None), None)
            return self.state + (f" at {format_value(name, best)}" if best is not None else "")
        mean = format_value(name, self.mean)
        if self.deviation is None:
            return mean
        unit = " %" if mean.endswith(" %") else ""
        return f"{mean.removesuffix(unit)} ± {format_value(name, self.deviation)}"

    def runs_text(self) -> str:
        """`3`, or `2, 1 failed`."""
        states = Counter(result.state for result in self.results)
        bad = [f"{states[state]} {state}" for state in STATES if state != "done" and states[state]]
        return ", ".join([str(len(self.done))] * bool(self.done) + bad)

    def label(self) -> str:
        """Its settings in a few words."""
        return (
            ", ".join(f"{short(key, self.settings)}={brief(value)}" for key, value in self.settings.items())
            or "as configured"
        )


class Leaderboard:
    """What one or several sweeps and runs achieved.

    Args:
        sources: sweeps and runs, at least one.
        results: every run of those that are compared.
        metric: by which runs are ranked.
        mode: `max` or `min`.
        left_out: names of sources that are compared by another metric, or by that of another family: with the metric,
            and with the family where that is why.

    Attributes:
        varied: settings that differ between runs, without the seed.
        between: settings that differ between sweeps and within none, where they are too many for columns.
        groups: runs by setting, the best first.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        results: list[Result],
        metric: str,
        mode: str,
        left_out: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self.sources, self.results, self.metric, self.mode = list(sources), results, metric, mode
        self.left_out = dict(left_out or {})
        rows = [dict(result.settings) for result in results]
        several = len({result.source for result in results}) > 1
        if several:
            rows = [{"sweep": result.source, **row} for result, row in zip(results, rows, strict=True)]
        keys = [key for key in varied_keys(rows) if key != "seed"]
        of_source: dict[str, list[dict[str, str]]] = {}
        for result in results:
            of_source.setdefault(result.source, []).append(result.settings)
        inside = {key for own in of_source.values() for key in varied_keys(own)}
        constant = [key for key in keys if key not in inside and key != "sweep"]
        self.between = constant if len(keys) > _MOST_COLUMNS and several else []
        self.varied = [key for key in keys if key not in self.between]
        alike: dict[tuple[str | None, ...], list[Result]] = {}  # a setting that a run lacks is none that is empty
        for result, row in zip(results, rows, strict=True):
            alike.setdefault(tuple(map(row.get, self.varied)), []).append(result)
        groups = [
            Group({key: value or "" for key, value in zip(self.varied, values, strict=True)}, same)
            for values, same in alike.items()
        ]
        sign = -1 if mode == "max" else 1
        self.groups = sorted(
            groups, key=lambda g: (STATES.index(g.state), sign * g.mean if g.mean is not None else math.inf)
        )

    @classmethod
    def of(cls, folders: Sequence[str | Path], metric: str | None = None, mode: str | None = None) -> "Leaderboard":
        """Read sweeps and runs back.

        Args:
            folders: of sweeps or runs, or with some below them.
            metric: by which to rank; None for the runs' own `monitor`, of the family that most of them are of.
            mode: `max` or `min`; None for the metric's own direction.

        Raises:
            UserError: there is no sweep or run, nothing ran yet, or no run wrote the metric.
        """
        sources = find_sources(folders)
        kinds = Counter((source.monitor, source.family) for source in sources for _ in source.jobs).most_common()
        if not kinds:
            raise UserError("", rule=f"no job of {', '.join(map(str, folders))} has run yet")
        wanted = metric or kinds[0][0][0]
        family = next((family for (monitor, family), _ in kinds if monitor == wanted and family), None)
        results_of = {id(source): source.results(wanted) for source in sources}
        left_out: dict[str, tuple[str, str]] = {}
        for source in sources:  # val/loss of two families is one name for two things: it must be asked for
            lacks = all(result.value is None for result in results_of[id(source)])
            if source.monitor != wanted and (metric is None or lacks):
                left_out[source.name] = (source.monitor, "")
            elif metric is None and source.family not in (family, None):
                left_out[source.name] = (source.monitor, str(source.family))
        results = [result for s in sources if s.name not in left_out for result in results_of[id(s)]]
        known_to_some = (
            metric is None or metric in written(results) or any(result.value is not None for result in results)
        )
        if not results or not known_to_some:
            names = written([result for results in results_of.values() for result in results])
            known = f"they wrote {', '.join(names)}" if names else "none has come to its end"
            raise UserError("", rule=f"no job wrote the metric {wanted!r}", remedy=known)
        if len(sources) > 1:
            fill_from_configs(results)
        if add_differences(results) and len(sources) > 1:
            fill_from_configs(results)
        if mode is None:
            mode = _direction(wanted, sources)
        compared = [source for source in sources if source.name not in left_out]
        return cls(compared, results, wanted, mode, left_out)

    @property
    def best(self) -> Group | None:
        """The first group that came to its end."""
        return self.groups[0] if self.groups and self.groups[0].mean is not None else None

    @cached_property
    def tied(self) -> list[Group]:
        """All groups with the best mean."""
        return [group for group in self.groups if self.best is not None and group.mean == self.best.mean]

    @cached_property
    def means(self) -> list[float]:
        """The means of the groups that came to their end, the best first."""
        return [group.mean for group in self.groups if group.mean is not None]

    @cached_property
    def extremes(self) -> tuple[float, float] | None:
        """The smallest and the largest mean, None where there is none."""
        return (min(self.means), max(self.means)) if self.means else None

    @cached_property
    def _ranks(self) -> dict[float, int]:
        """The rank of each mean: that of the first group that has it."""
        ranks: dict[float, int] = {}
        for rank, mean in enumerate(self.means, start=1):
            ranks.setdefault(mean, rank)
        return ranks

    def rank(self, group: Group) -> str:
        """A group's rank, from 1; groups with one mean share it. Empty for one that did not come to its end."""
        return "" if group.mean is None else str(self._ranks[group.mean])

    def count(self, state: str) -> int:
        """Runs in this state."""
        return sum(result.state == state for result in self.results)

    @cached_property
    def missing(self) -> int:
        """Jobs that never began."""
        planned = [(metric(source.header, "jobs") or 0.0, len(source.jobs)) for source in self.sources]
        return sum(max(0, int(jobs) - begun) for jobs, begun in planned if math.isfinite(jobs))

    def states_text(self) -> str:
        """`7 done, 1 failed`."""
        order = ("done", "pruned", "failed", "stopped", "unfinished")
        parts = [f"{n} {state}" for state in order if (n := self.count(state))]
        return ", ".join(parts + ([f"{self.missing} not started"] if self.missing else []))

    @cached_property
    def seconds(self) -> float:
        """Time all runs took together."""
        taken = [metric(r.record, "wall_seconds") if r.record else r.seconds for r in self.results]
        return sum(value for value in taken if value is not None and math.isfinite(value))

    def wrote(self, name: str) -> bool:
        """Whether any run that came to its end wrote a metric."""
        return any(group.mean_of(name) is not None for group in self.groups)

    @property
    def also(self) -> list[str]:
        """Metrics with a column beside the ranking one: a search's other objectives, the same one on the test split."""
        headers = [source.header.get("objectives") for source in self.sources]
        objectives = [str(name) for header in headers if isinstance(header, Mapping) for name in header]
        test = "test/" + self.metric.rpartition("/")[2]
        return [name for name in dict.fromkeys([*objectives, test]) if name not in (self.metric, *_OWN_COLUMN)]

    @cached_property
    def ceiling(self) -> float | None:
        """The best value that the data allows, where the runs know one and the same."""
        split, _, name = self.metric.rpartition("/")
        records = [result.record for result in self.results if result.record is not None]
        ceilings = [_ceiling(record, split) for record in records]
        known = {metric(ceiling, name) if isinstance(ceiling, Mapping) else None for ceiling in ceilings}
        return next(iter(known)) if len(known) == 1 else None

    def differences(self) -> list[str]:
        """What each sweep set that the others set otherwise, beside what the columns show; what was left out."""
        firsts = {result.source: result.settings for result in reversed(self.results)}
        lines = [
            f"{name}: "
            + ", ".join(f"{short(key, self.between)}={brief(settings.get(key, ''))}" for key in self.between)
            for name, settings in reversed(firsts.items())
            if self.between
        ]
        alike: dict[tuple[str, str], list[str]] = {}
        for name, kind in self.left_out.items():
            alike.setdefault(kind, []).append(name)
        for (monitor, family), names in alike.items():
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            named = ", ".join(names[:_MOST_NAMES]) + more
            which = "which is" if len(names) == 1 else "which are"
            measured = f"{monitor} of {family}" if family else monitor
            lines.append(f"left out: {named}, {which} compared by {measured} (--metric {monitor})")
        return lines


def _direction(wanted: str, sources: Sequence[Source]) -> str:
    """`max` or `min`: as the runs say that look at this metric, then as it is known, then as of its other split."""
    name = wanted.rpartition("/")[2]
    own = next((source.mode for source in sources if source.monitor == wanted), None)
    other = next((source.mode for source in sources if source.monitor.rpartition("/")[2] == name), None)
    return own or (other if metric_info(wanted) is None else None) or direction(wanted)


def written(results: Sequence[Result]) -> list[str]:
    """Names of all metrics that runs wrote."""
    return list(dict.fromkeys(name for r in results if r.record is not None for name in metric_names(r.record)))


def varied_keys(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys whose values differ between rows, in the order of their first appearance."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]


def _ceiling(record: Mapping[str, Any], split: str) -> Any:
    """What bounds a split's metrics: nothing known of this one is no reason to take another split's."""
    by_split = record.get("ceiling_by_split")
    return by_split[split] if isinstance(by_split, Mapping) and split in by_split else record.get("ceiling")


def short(key: str, others: Iterable[str] = ()) -> str:
    """The end of a setting's name: its last part, with as many before it as tell it from others."""
    parts, *rivals = (name.lstrip("+~").split(".") for name in (key, *others))
    for count in range(1, len(parts)):
        if not any(rival[-count:] == parts[-count:] for rival in rivals if rival != parts):
            return ".".join(parts[-count:])
    return ".".join(parts)


def brief(text: str) -> str:
    """A setting's value; a long number with the digits that count, four or more; all of a whole number.

    Of 0.999962 it is the distance to 1 that counts, as for a momentum or a decay.
    """
    if len(text) <= 7:
        return text
    if _WHOLE.fullmatch(text):
        return text.partition(".")[0]
    try:
        value = float(text)
    except ValueError:
        return text
    allowed = _TOLERANCE * min(abs(value), abs(1 - value))
    shown = (f"{value:.{digits}g}" for digits in range(4, 18))
    return next((figures for figures in shown if abs(float(figures) - value) <= allowed), text)
