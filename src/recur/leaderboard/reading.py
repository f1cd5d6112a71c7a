"""Folders of sweeps and of single runs, read back as results."""

import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recur.errors import UserError
from recur.runs import journal, marks
from recur.runs.files import read_regular
from recur.runs.folder import NOT_FINITE
from recur.runs.limits import read_yaml
from recur.runs.metrics import direction, family_of, metric, read_record

_DEEPEST = 6  # folders below a given one in which runs are looked for
_MOST_BYTES = 100_000  # of a file that says why a run ended
_STOPPED = ("failed", "stopped")
LEFT_OUT = "left out"  # the text of a setting that was typed as `~callbacks.ema`
# What runs are compared by of what their records say of the data.
_READ = ("train", "val", "classes", "pseudo-labelled", "unlabelled")
# Settings of a job that do not decide which data it reads.
_NO_DATA = re.compile(r"(model|optimizer|scheduler|trainer|callbacks|logger|name|tags|monitor|mode)(\.|$)")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_FLAT_LIST = re.compile(r"\[[^\[\]{}'\"]*\]")
_AGAIN = re.compile(r"\b(resume|overwrite)=")  # in the command of a run that was not simply begun
# What was typed for one command, or only names a run.
_SAYS_NOTHING = ("hydra.", "hydra/", "resume=", "name=", "tags=", "overwrite=", "accept_data_change=")
# Settings by their paths that do not decide what a model learns: names, places, what is written down and how.
_BESIDE = re.compile(
    r"(seed|name|tags|extras|logger|test|baseline|resume|overwrite|accept_data_change|find_lr)(\.|$)"
    r"|(.*\.)?(\w*dir|\w*dirpath|filename|num_workers|_partial_)$"
    r"|callbacks\.(last|finite|learning_rate|throughput|pages|gradients|progress|samples)(\.|$)"
    r"|data\.seed$"  # the run's own
    r"|trainer\.(accelerator|devices|precision|enable_\w+|log_every_n_steps|limit_test_batches|num_sanity_val_steps|profiler)$"
)


@dataclass
class Result:
    """One run.

    Attributes:
        source: the sweep that it belongs to, in a word; empty for a run of its own.
        label: the number of the job, or the folder of a run of its own.
        folder: of the run.
        state: `done`, `pruned`, `failed`, `stopped` or `unfinished`.
        settings: its overrides, key to text.
        record: its `metrics.json`, None where it has none.
        value: the metric, None where it has none.
        reason: of a failure.
        curve: its validations.
        seconds: that the sweep spent on it, or a run of its own until its last validation; for one without a record.
    """

    source: str
    label: str
    folder: Path
    state: str
    settings: dict[str, str]
    record: dict[str, Any] | None
    value: float | None = None
    reason: str = ""
    curve: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0

    @property
    def seed(self) -> str:
        """The run's seed as text."""
        known = self.settings.get("seed", "" if self.record is None else self.record.get("seed", ""))
        return str(known)

    @property
    def log(self) -> Path:
        """What a job of a sweep printed, or the log of a run of its own."""
        job, own = self.folder / "output.log", self.folder / "train.log"
        return own if own.is_file() and not job.is_file() else job

    def points(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of a metric at every validation."""
        return _points(self.curve, name)


@dataclass
class Source:
    """A sweep, or a run of its own, before its results are read.

    Attributes:
        folder: where it is.
        name: what tells it from the others.
        monitor: the metric by which its runs are compared.
        mode: `max` or `min`.
        header: the first line of a sweep's journal, its jobs as they were last asked for; empty for a run.
        jobs: label, folder, overrides and last event of each run, with the seconds of all its attempts.
        family: of the task that its runs train; None where no config says so, and for a task from elsewhere.
    """

    folder: Path
    name: str
    monitor: str
    mode: str
    header: dict[str, Any]
    jobs: list[tuple[str, Path, list[str], dict[str, Any]]]
    family: str | None = None

    @property
    def is_sweep(self) -> bool:
        """Whether it is a sweep."""
        return bool(self.header)

    def results(self, wanted: str) -> list[Result]:
        """Its runs with their values of a metric."""
        return [self._result(*job, wanted) for job in self.jobs]

    def _result(self, label: str, folder: Path, overrides: list[str], end: Mapping[str, Any], wanted: str) -> Result:
        record = read_record(folder)
        state, reason = str(end.get("state")), str(end.get("reason", ""))
        value = None if record is None else metric(record, wanted)
        curve = tuple(journal.read_validations(folder))
        in_training = wanted == self.monitor and wanted.startswith("train/")  # of which no record says anything
        if in_training and record is not None:
            best = max if self.mode == "max" else min
            whole = (value for epoch, value in _points(curve, wanted) if float(epoch).is_integer())
            value = best(whole, default=None)  # of a part of an epoch no weights were kept
        if record is None:
            exploded = "" if state in _STOPPED else _why_not_finite(folder)
            state = state if state in _STOPPED else "failed" if exploded else "unfinished"
            reason = reason or exploded
        elif record.get("pruned"):
            state, reason = "pruned", ""
            value = None if value is not None and not math.isfinite(value) else value  # no order has a place for it
        elif value is not None and not math.isfinite(value):
            state, value, reason = "failed", None, reason or "the metric is not finite"
        elif value is None and wanted == self.monitor and not in_training:
            state, reason = "failed", f"it wrote no {wanted} into metrics.json"
        elif wanted == self.monitor and (lacking := self._lacking(record)):
            state, value, reason = "failed", None, lacking
        else:  # a complete run is done, whatever the journal says of its process
            state, reason = "done", ""
        # `sweep=` only says where other settings come from.
        settings = {key: text for key, text in map(_split, overrides) if key != "sweep"}
        source = self.name if self.is_sweep else ""
        seconds = _seconds(end) if self.is_sweep else _seconds_of_curve(curve)
        return Result(source, label, folder, state, settings, record, value, reason, curve, seconds)

    def _lacking(self, record: Mapping[str, Any]) -> str:
        """What is wrong with a job by which of the sweep's objectives it has; nothing where it has all."""
        objectives = self.header.get("objectives")
        for name in objectives if isinstance(objectives, Mapping) else ():
            value = metric(record, str(name))
            if value is None and not str(name).startswith("train/"):
                return f"it wrote no {name} into metrics.json"
            if value is not None and not math.isfinite(value):
                return "the metric is not finite"
        return ""


def _points(curve: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(epoch, value) of a metric at every validation that has it."""
    values = [(entry["epoch"], metric({"value": entry["metrics"].get(name)}, "value")) for entry in curve]
    return [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]


def _seconds(entry: Mapping[str, Any]) -> float:
    """What an event or a validation says of the time that was spent; 0 where that is no number."""
    seconds = metric(entry, "seconds")
    return seconds if seconds is not None and math.isfinite(seconds) else 0.0


def _seconds_of_curve(curve: Sequence[Mapping[str, Any]]) -> float:
    """Time until a run's last validation. Each process of a resumed run counts its own from 0."""
    spent = [*map(_seconds, curve), 0.0]
    return sum(now for now, then in itertools.pairwise(spent) if then < now)


def _why_not_finite(folder: Path) -> str:
    """What a run says that ended by a loss or gradient that is not finite, on one line; empty for others."""
    try:
        text = read_regular(folder / NOT_FINITE, _MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    except ValueError:
        text = ""
    return " ".join(text.split()) or "a loss or gradient is not finite"


def _split(override: str) -> tuple[str, str]:
    """Key and value of a setting, which is the same one whether it was typed with `+`, `++` or neither."""
    key, _, text = str(override).partition("=")
    return key.lstrip("+"), LEFT_OUT if key.startswith("~") else text


def find_sources(folders: Sequence[str | Path]) -> list[Source]:
    """The sweeps and runs at these folders, or anywhere below those that are neither.

    Raises:
        UserError: there is none.
    """
    # One folder may be named in several ways: `runs/a` and `runs/b/../a` are one, and so is a link to it.
    typed = [Path(os.path.expanduser(folder)) for folder in folders]
    paths = list({path.resolve(): path for path in typed}.values())
    places: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError("", rule=f"there is no sweep at {path}, and no run")
        below = _below(path)
        if not below:
            raise UserError(str(path), rule="is not a sweep and not a run, and holds none")
        places |= {place.resolve(): place for place in below}
    names = _names(list(places))
    sources = [_source(place, name) for place, name in zip(places.values(), names, strict=True)]
    return [source for source in sources if source is not None]


def _below(folder: Path) -> list[Path]:
    if _is_sweep(folder) or _is_run(folder):
        return [folder]
    places = []
    depth = len(folder.parts)
    for name, inner, _ in os.walk(folder):
        here = Path(name)
        inner[:] = sorted(one for one in inner if not one.startswith(".") and not (here / one).is_symlink())
        if here != folder and (_is_sweep(here) or _is_run(here)):
            places.append(here)
            inner.clear()
        elif len(here.parts) - depth >= _DEEPEST:
            inner.clear()
    return places


def _is_sweep(folder: Path) -> bool:
    return (folder / journal.NAME).is_file()


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (
        (folder / "metrics.json").is_file() or (folder / "checkpoints").is_dir() or (folder / NOT_FINITE).is_file()
    )


def _source(folder: Path, name: str) -> Source | None:
    if not _is_sweep(folder):
        return _run(folder, name)
    events = journal.read(folder)
    header = journal.last_typed(events)
    starts: dict[int, tuple[Path, list[str]]] = {}
    ends: dict[int, dict[str, Any]] = {}
    spent: dict[int, float] = {}
    for event in events:  # the last event of a job counts, and the time of all its attempts
        if event["event"] == "start":
            starts[event["job"]] = (folder / event["folder"], list(map(str, event["overrides"])))
            ends.pop(event["job"], None)
        elif event["event"] == "end":
            ends[event["job"]] = event
            spent[event["job"]] = spent.get(event["job"], 0.0) + _seconds(event)
    if marks.is_key(header.get("id")):  # jobs whose lines the journal has lost
        for number, (place, mark) in marks.marked_folders(folder, header["id"]).items():
            starts.setdefault(number, (place, list(mark.overrides)))
    jobs = [
        (str(n), place, overrides, {**ends.get(n, {}), "seconds": spent.get(n, 0.0)})
        for n, (place, overrides) in sorted(starts.items())
    ]
    configs = (plain_config(place) for _, place, _, _ in jobs)
    family = _family(next((config for config in configs if isinstance(config, dict)), {}))
    return Source(folder, name, str(header["monitor"]), str(header["mode"]), header, jobs, family)


def _run(folder: Path, name: str) -> Source | None:
    """A run of its own; None where its config cannot be read."""
    config = plain_config(folder)
    if not isinstance(config, dict):
        return None
    monitor = str(config.get("monitor", ""))
    mode = str(config.get("mode", direction(monitor)))
    return Source(folder, name, monitor, mode, {}, [(name, folder, _typed_in(folder), {})], _family(config))


def _typed_in(folder: Path) -> list[str]:
    """The overrides that a run's folder keeps, without what says nothing of the run."""
    try:
        typed = read_yaml(folder / ".hydra" / "overrides.yaml")
    except (OSError, ValueError):
        typed = []
    overrides = [str(text) for text in typed or [] if isinstance(typed, list)]
    return [text for text in overrides if not text.lstrip("+~").startswith(_SAYS_NOTHING)]


def _family(config: Any) -> str | None:
    return family_of(str(_at(config, "model._target_", default="")))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and of as many parts before it as set them apart."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]).lstrip("/") for path in paths]


def fill_from_configs(results: Sequence[Result]) -> None:
    """Add settings that others typed and this run left as configured, from the run's own config.

    One value is one text in all runs, the one that was typed first: `0` for `0.0`, `1e-3` for `0.001`, `False` for
    `false`.
    """
    typed: dict[str, dict[float | str, str]] = {}
    for result in results:
        for key, text in result.settings.items():
            typed.setdefault(key, {}).setdefault(_meaning(text), text)
    for result in results:
        lacking = [key for key in typed if key not in result.settings]
        if lacking:
            config, choices = plain_config(result.folder), _choices(result.folder)
            for key in lacking:
                value = choices[key] if key in choices else _at(config, key.lstrip("+~"), default=_ABSENT)
                if value is None or isinstance(value, (str, int, float, bool)):
                    result.settings[key] = _word(value)
                elif isinstance(value, list):
                    result.settings[key] = f"[{','.join(map(_word, value))}]"
        for key, text in result.settings.items():
            result.settings[key] = typed[key].get(_meaning(text), text)


def add_differences(results: Sequence[Result]) -> bool:
    """Add settings that nobody typed and in which runs differ that would else be taken for repeats of one another.

    Such a difference comes from a config file that was edited between runs of their own. Jobs of a sweep share these:
    theirs comes from files of data that changed while the sweep ran, or from a job that was gone on with by hand.

    Returns:
        whether there was one.
    """
    jobs = [result for result in results if result.source]
    differ = _add_read(jobs)
    for same in _alike(jobs, _typed):
        differ |= len(same) > 1 and _add_by_hand(same)
    alike = [same for same in _alike([one for one in results if not one.source], _typed) if len(same) > 1]
    leaves = {id(one): _decisive(one) for same in alike for one in same}
    varied: dict[str, None] = {}
    for same in alike:
        for key in dict.fromkeys(key for one in same for key in leaves[id(one)]):
            if len({_value(leaves[id(one)], key) for one in same} - {None}) > 1:
                varied[key] = None
    for same in alike:
        for one in same:
            for key in varied:
                if (text := _value(leaves[id(one)], key)) is not None:
                    one.settings.setdefault(key, text)
    return differ or bool(varied)


def _typed(result: Result) -> dict[str, str]:
    """What was typed but for the seed."""
    return {key.lstrip("+~"): text for key, text in result.settings.items() if key != "seed"}


def _alike(results: Sequence[Result], settings: Callable[[Result], dict[str, str]]) -> list[list[Result]]:
    """Results of one source with the same settings."""
    alike: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        alike.setdefault((result.source, *sorted(settings(result).items())), []).append(result)
    return list(alike.values())


def _add_read(jobs: Sequence[Result]) -> bool:
    """Add what was in the data to all jobs of a sweep of which some read other data with the same settings of them."""
    varied: dict[str, set[str]] = {}
    of_data = _alike(jobs, lambda job: {key: text for key, text in _typed(job).items() if not _NO_DATA.match(key)})
    for same in of_data:
        said = {tuple(sorted(read.items())): job for job in same if (read := _read(job))}
        if len(said) > 1:  # one job of each kind shows whether its own config, with `${seed}` in it, is the reason
            settings = {str(_leaves(_at(plain_config(job.folder), "data"), "data")) for job in said.values()}
            if len(settings) < len(said):
                differing = {key for one in said for key, _ in one if len({dict(other).get(key) for other in said}) > 1}
                varied.setdefault(same[0].source, set()).update(differing)
    for job in jobs:
        job.settings |= {key: text for key, text in _read(job).items() if key in varied.get(job.source, ())}
    return bool(varied)


def _add_by_hand(same: Sequence[Result]) -> bool:
    """Set what somebody changed in one of the jobs that repeat one another, in all of them."""
    keys = sorted({key for job in same for key in _changed_by_hand(job)})
    leaves = [_leaves(plain_config(job.folder)) for job in same] if keys else []
    varied = [key for key in keys if len({_value(own, key) for own in leaves} - {None}) > 1]
    for job, own in zip(same, leaves, strict=False):
        for key in varied:
            text = _value(own, key)
            if text is not None and _meaning(job.settings.get(key, "")) != _meaning(text):
                job.settings[key] = text
    return bool(varied)


def _changed_by_hand(job: Result) -> set[str]:
    """Settings that may be others than the sweep's, in a job whose last command went on with it or replaced it."""
    if not _AGAIN.search(str((job.record or {}).get("command"))):  # thousands of jobs are not opened for this
        return set()
    typed = {key.lstrip("~"): text for key, text in map(_split, _typed_in(job.folder))}
    return {key for key, _ in typed.items() ^ _typed(job).items()}


def _decisive(result: Result) -> dict[str, str]:
    """What decides what a run's model learns: the settings of its config, and what was in the files that it names."""
    config = plain_config(result.folder)
    return _leaves(config) | (_read(result) if _names_file(_at(config, "data")) else {})


def _read(result: Result) -> dict[str, str]:
    """What a run's record says of the data that it read."""
    said = (result.record or {}).get("data")
    known = said if isinstance(said, dict) else {}
    return {f"read.{key}": known[key] for key in _READ if isinstance(known.get(key), str)}


def _names_file(node: Any) -> bool:
    """Whether a part of a config names a file or folder to read, which composing makes absolute."""
    if isinstance(node, dict):
        return any(_names_file(value) for key, value in node.items() if not _BESIDE.match(str(key)))
    values = node if isinstance(node, list) else [node]
    return any(isinstance(value, str) and os.path.isabs(value) for value in values)


def _value(leaves: dict[str, str], key: str) -> str | None:
    """A setting's value: null where what it belongs to is null, None where there is none: it came with a version."""
    above = (key[:end] for end, letter in enumerate(key) if letter == ".")
    return leaves.get(key, "null" if any(part in leaves for part in above) else None)


def _leaves(node: Any, path: str = "") -> dict[str, str]:
    """The settings of a config that decide what a model learns, by their paths, as text."""
    if _BESIDE.match(path):
        return {}
    if isinstance(node, dict) and node:
        inner = (_leaves(value, f"{path}.{key}".lstrip(".")) for key, value in node.items())
        return {key: text for part in inner for key, text in part.items()}
    values = node if isinstance(node, list) else [node]
    # Of a file its name: a run keeps where it lay on one machine. What was in it is compared by `_decisive`.
    words = [os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value for value in values]
    return {path: _word(words if isinstance(node, list) else words[0])}


def plain_config(folder: Path) -> Any:
    """A run's `config.yaml` as it stands there, nothing in it resolved; None where it cannot be read."""
    try:
        return read_yaml(folder / "config.yaml")
    except (OSError, ValueError):
        return None


def _choices(folder: Path) -> dict[str, Any]:
    """The options of groups that a run was composed of."""
    try:
        choices = _at(read_yaml(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.choices")
    except (OSError, ValueError):
        return {}
    return choices if isinstance(choices, dict) else {}


_ABSENT = object()


def _at(node: Any, path: str, default: Any = None) -> Any:
    """A value in plain containers, the default where there is none."""
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def _word(value: Any) -> str:
    """A value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(text: str) -> float | str:
    """What a text is compared by: its number where it is one, and `true`, `false` and `null` in whatever case."""
    if values := numbers([text]):
        return values[0]
    if _QUOTED.fullmatch(text):
        return text[1:-1]
    if _FLAT_LIST.fullmatch(text):
        return f"[{', '.join(str(_meaning(part.strip())) for part in text[1:-1].split(','))}]"
    return text.lower() if text.lower() in ("true", "false", "null") else text


def numbers(texts: Sequence[str]) -> list[float] | None:
    """Texts as numbers, None where one is none."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None
