"""What is published of an experiment: the figures of its runs, one a seed, how they were got, and their curve.

A record is `metrics.json` of the first seed without what belongs to one machine, and besides

    command     which gives it, with FOLDER for the data
    begins_from experiments of the runs whose weights it begins with
    settings    of the run, by dotted name: a test holds them to the experiment's file as it is today
    runs        figures of every seed: `{"0": {"val": ..., "test": ..., "train_seconds": ...}, ...}`
    history     the validations of the first seed
    epochs_of   how many epochs the experiment asks for
    evaluation  what `python -m recur.evaluate` printed of the first seed, from `evaluation.json` of its folder
"""

import json
import math
import shlex
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur.errors import ABSENT, UserError
from recur.runs.journal import read_validations
from recur.runs.limits import read_yaml
from recur.runs.metrics import read_record

if TYPE_CHECKING:
    from recur.config.compose import Composed

# Settings of one machine or one command, which say nothing about the experiment.
_OWN = ("hydra", "seed", "resume", "tags", "overwrite", "accept_data_change", "find_lr", "extras", "logger", "name")
_PLACES = ("data.path", "data.train", "data.val", "data.test", "data.cache_dir", "init_from")
_MACHINE = ("data.seed", "trainer.precision", "trainer.accelerator", "trainer.devices", "trainer.default_root_dir")
_GROUPS = ("data", "model", "optimizer", "scheduler", "callbacks")  # of settings that make a run's figures
REPEATS = 5  # rounds of each race of the bench, unless it is said otherwise
_TRAINING = ("train/epoch_loss", "train/epoch_accuracy")
_SHOWN = ("epoch", *_TRAINING, "val/loss", "val/accuracy", "val/perplexity")
_WIDTH, _INDENT = 118, " " * 10


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name, lists whole."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that make its figures, without places and what the machine decides."""
    return {
        key: value
        for key, value in flat(config)
        if key.partition(".")[0] not in _OWN and key not in (*_PLACES, *_MACHINE) and not key.endswith(".dirpath")
    }


def of_experiment(name: str) -> dict[str, Any]:
    """The settings of an experiment's file as it is, likewise.

    Raises:
        UserError: there is no such experiment.
    """
    return settings_of(_composed([f"experiment={name}"]).config)


def _composed(words: Sequence[str]) -> "Composed":
    from recur.config.compose import command_line, compose_run

    return compose_run(command_line(words))


def words_of(name: str, settings: Mapping[str, Any], folder: Path) -> list[str]:
    """What is typed to get an experiment's run with these settings, without where its data lies.

    Raises:
        UserError: the run has settings that this would not give.
    """
    from recur.config.compose import begun_with

    words = [f"experiment={name}"]
    typed, chosen = begun_with(folder)
    usual = _composed(words).hydra.runtime.choices
    words += [f"{group}={chosen[group]}" for group in _GROUPS if chosen.get(group) not in (None, usual.get(group))]
    words += [word for word in typed if word.startswith(("+", "~"))]
    changes = changes_of(settings, settings_of(_composed(words).config))
    words += [f"{key}={_typed(value)}" for key, value in changes.items()]
    got = settings_of(_composed(words).config)
    if other := next((key for key in settings if key in got and got[key] != settings[key]), None):
        rule = f"has {other}={settings[other]!r}, which `{shlex.join(words)}` does not give"
        raise UserError(str(folder), ABSENT, rule, "make it an experiment's file of its own")
    return words


def changes_of(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that are not those of its experiment, as they are typed.

    Where one has a mapping for what is a plain value in the other, the whole of it is the change. A setting that only
    one of them has, and that is no part of such a mapping, came or went with a version and is none.
    """
    changes = {key: value for key, value in settings.items() if key in wanted and wanted[key] != value}
    for key in settings:
        if key not in wanted and any(other.startswith(f"{key}.") for other in wanted):
            changes[key] = settings[key]
        for place in (key[:dot] for dot, sign in enumerate(key) if sign == "."):
            if place in wanted:
                inner = {
                    name.removeprefix(f"{place}."): v for name, v in settings.items() if name.startswith(f"{place}.")
                }
                changes[place] = inner
    return changes


def record_of(folders: Sequence[Path]) -> dict[str, Any]:
    """The record of the runs of one experiment, one a seed.

    Raises:
        UserError: a folder is no finished run, or the runs differ in more than their seeds.
    """
    by_seed: dict[int, tuple[dict[str, Any], Any, Path]] = {}
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            raise UserError(
                str(folder), ABSENT, "has no metrics.json and no bench.json", "give the folder of a finished run"
            )
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        seed = int(metrics["seed"])
        if seed in by_seed:
            raise UserError(str(folder), ABSENT, f"has the seed {seed} of {by_seed[seed][2]}", "publish one run a seed")
        if None in (metrics.get("train_seconds"), metrics.get("tokens_per_second")):
            raise UserError(str(folder), ABSENT, "has no times", "publish a run with callbacks.throughput")
        by_seed[seed] = (metrics, read_yaml(folder / "config.yaml"), folder)
    (metrics, config, folder), settings = by_seed[min(by_seed)], settings_of(by_seed[min(by_seed)][1])
    for figures, other, place in by_seed.values():
        same = all(figures.get(key) == metrics.get(key) for key in ("precision", "world_size"))
        if settings_of(other) != settings or not same:
            raise UserError(str(place), ABSENT, f"has other settings than {folder}", "publish runs that differ by seed")
    name = metrics["name"]
    first, *others = words_of(name, settings, folder)
    return {
        **metrics,
        "command": shlex.join(["python", "-m", "recur.train", first, *_places(config), *others]),
        "begins_from": _begun_from(config),
        "settings": settings,
        "epochs_of": of_experiment(name)["trainer.max_epochs"],
        "evaluation": _evaluation(folder),
        "runs": {str(seed): _short(by_seed[seed][0]) for seed in sorted(by_seed)},
        "history": _history(read_validations(folder)),
    }


def _history(validations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each validation, with the training figures of the same epoch.

    Earlier versions wrote those of the epoch before: they go to the validation at that one's end.
    """
    entries = [{"epoch": one["epoch"], **one["metrics"]} for one in validations]
    for number, one in enumerate(validations):
        if "training" in one:
            continue
        before = math.ceil(one["epoch"]) - 1
        late = {key: entries[number].pop(key) for key in _TRAINING if key in entries[number]}
        for entry in entries[:number]:
            if entry["epoch"] == before:
                entry.update(late)
    return [{key: entry[key] for key in _SHOWN if key in entry} for entry in entries]


def _begun_from(config: Mapping[str, Any]) -> list[str]:
    value = config.get("init_from") or []
    paths = [Path(one) for one in ([value] if isinstance(value, str) else value)]
    folders = [path.parent.parent if path.is_file() else path for path in paths]  # of a checkpoint, or the run itself
    return [str(record["name"]) for folder in folders if (record := read_record(folder)) and "name" in record]


def _evaluation(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    own = {split: record[split] for split in ("val", "test") if split in record}
    if others := record.get("with"):
        own["with"] = [{key: (read_record(Path(other)) or {}).get(key) for key in ("name", "seed")} for other in others]
    return own


def _short(metrics: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: metrics[key] for key in ("val", "test", "train_seconds", "wall_seconds") if metrics.get(key)}
    return own | {"commit": metrics["commit"]}


def _places(config: Mapping[str, Any]) -> list[str]:
    """Where a run's data lies, as a reader types it."""
    words = []
    for place in _PLACES:
        value = dict(flat(config)).get(place)
        if place == "init_from" and value and not isinstance(value, str):
            words.append(f"{place}=[{','.join(['RUN'] * len(value))}]")
        if isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists()):
            words.append(
                f"{place}={'RUN' if place == 'init_from' else Path(value).name if Path(value).suffix else 'FOLDER'}"
            )
    return words


def _typed(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(one)}" for key, one in value.items()) + "}"
    return "null" if value is None else json.dumps(value)


# ---------------------------------------------------------------------------------------------------------- in words


def spread(record: Mapping[str, Any], split: str) -> str:
    """The figure of a split: of one seed, or mean and standard deviation of several."""
    runs = [run[split] for run in record["runs"].values() if run.get(split)]
    if not runs:
        return ""
    if "perplexity" in runs[0]:
        nats, perplexities = [run["loss"] for run in runs], [run["perplexity"] for run in runs]
        return f"perplexity {_mean(perplexities, '.2f')} ({_mean(nats, '.3f')} nats)"
    return f"{_mean([100 * run['accuracy'] for run in runs], '.2f')} %"


def of_texts(record: Mapping[str, Any]) -> str:
    """` on 13,157 texts` where a classifier was tested: copies of a data set differ in how many they have."""
    size, texts, _ = str((record.get("data") or {}).get("test", "")).partition(" texts")
    return f" on {size} texts" if texts and spread(record, "test") else ""


def _mean(figures: Sequence[float | None], form: str) -> str:
    values = [math.nan if figure is None else figure for figure in figures]  # null is a figure that is not finite
    mean = format(statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def of_ngrams(record: Mapping[str, Any]) -> str:
    """What a model of n-grams reaches on the split that the run is judged by; empty where none was asked."""
    baseline = record.get("baseline") or {}
    metrics = baseline.get("test") or baseline.get("val") or {}
    return spread({"runs": {"0": {"of": metrics}}}, "of") if metrics else ""


def of_ceiling(record: Mapping[str, Any]) -> str:
    """The best that is possible on the split that the run is judged by; empty where it is not known."""
    split = "test" if spread(record, "test") else "val"
    ceilings = record.get("ceiling_by_split") or {"test": record.get("ceiling")}  # the only one in earlier records
    return spread({"runs": {"0": {"of": ceilings.get(split)}}}, "of")


def adapted(record: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a run that is measured in another way besides, by split and way.

    A language model may be at a temperature or with a cache, a classifier averaged with others.
    """
    ways = {
        "each_window_alone": "in windows of {window} from empty states",
        "temperature": "at a temperature of {temperature:.3g}",
        "neural_cache": "with a neural cache",
        "dynamic_evaluation": "with dynamic evaluation",
    }
    runs = record.get("runs") or {}
    several = f" of seed {min(runs, key=int)}" if len(runs) > 1 else ""
    evaluation = record.get("evaluation") or {}
    if others := evaluation.get("with"):
        names = [
            f"seed {other['seed']}" if other["name"] == record["name"] else f"`{other['name']}`" for other in others
        ]
        way = f"{several} averaged with {', '.join(names)}"
        return {
            f"{word}{way}": spread({"runs": {"0": {"of": evaluation[split]}}}, "of")
            for split, word in (("val", "validation"), ("test", "test"))
            if split in evaluation
        }
    return {
        f"{word} {ways[way].format(**own[way])}{several}": spread({"runs": {"0": {"of": own[way]}}}, "of")
        for split, word in (("val", "validation"), ("test", "test"))
        for way in ways
        if way in (own := evaluation.get(split, {}))
    }


def seeds(record: Mapping[str, Any]) -> str:
    """Which seeds were run, in words."""
    names = list(record["runs"])
    return f"seed {names[0]}" if len(names) == 1 else f"mean and deviation of seeds {', '.join(names)}"


def part(record: Mapping[str, Any]) -> str:
    """How much of the experiment was run, where it is not all of it."""
    wanted = record["epochs_of"]
    return f"after {record['epochs']} of {wanted} epochs" if record["epochs"] < wanted else ""


def time(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """How long training took, and before it that of the published runs whose weights it began with."""
    times = {one["name"]: minutes(one["train_seconds"]) for one in records}
    before = [f"{times[name]} of `{name}`" for name in record.get("begins_from", []) if name in times]
    return minutes(record["train_seconds"]) + (f" after {' and '.join(before)}" if before else "")


def minutes(seconds: float) -> str:
    """A time as a reader wants it."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def header(record: Mapping[str, Any]) -> list[str]:
    """The lines at the head of an experiment's file that give its figures."""
    sizes = {"val": "", "test": of_texts(record)}
    figures = [
        f"{word} {text}{sizes[split]}"
        for split, word in (("val", "validation"), ("test", "test"))
        if (text := spread(record, split))
    ]
    figures += [f"{split} {text}" for split, text in adapted(record).items()]
    if text := of_ceiling(record):
        figures.append(f"the best possible: {text}")
    if text := of_ngrams(record):
        figures.append(f"a model of n-grams on the same text: {text}")
    figure = "; ".join([", ".join(figures), *filter(None, [part(record)]), seeds(record)])
    threads = f"{record['threads']} thread{'' if record['threads'] == 1 else 's'}"
    times = f"{minutes(record['train_seconds'])} of training, {minutes(record['wall_seconds'])} with everything"
    lines = []
    for word, text in (
        ("Figure", figure),
        ("Hardware", f"{record['device']}; {threads}, {record['precision']}"),
        ("Time", f"{times}; {record['tokens_per_second']:,} tokens/s{_useful(record)}"),
    ):
        wrapped = textwrap.wrap(text, _WIDTH - len(_INDENT), break_on_hyphens=False)
        lines += [f"# {f'{word}:':<{len(_INDENT)}}{wrapped[0]}", *(f"# {_INDENT}{rest}" for rest in wrapped[1:])]
    return lines


def _useful(record: Mapping[str, Any]) -> str:
    rate, limit = record.get("flop_per_second"), record.get("matrix_rate")
    if not rate or not limit or not math.isfinite(rate / limit):
        return ""
    return f", {rate / 1e9:,.0f} useful GFLOP/s ({100 * rate / limit:.0f} % of the rate of large products)"


def path_of(name: str) -> Path:
    """An experiment's file."""
    from recur.config.compose import conf_dir

    return conf_dir() / "experiment" / f"{name}.yaml"


def with_header(text: str, lines: Sequence[str]) -> str:
    """An experiment's file with the lines that give its figures replaced.

    Raises:
        ValueError: it has none.
    """
    old = text.splitlines()
    begin = next((i for i, line in enumerate(old) if line.startswith("# Figure:")), None)
    if begin is None:
        raise ValueError("the file has no line that begins with '# Figure:'")
    end = begin
    while end < len(old) and (end == begin or old[end].startswith(("# Hardware:", "# Time:", f"# {_INDENT}", "#   "))):
        end += 1
    return "\n".join([*old[:begin], *lines, *old[end:]]) + "\n"
