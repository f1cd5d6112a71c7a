"""The one list of metrics, and `metrics.json`.

To add a metric, add one line to `METRICS` and compute it in the task of its family. TensorBoard's HParams tab, the
leaderboard, the lines of a run and the check of a mistyped `monitor` read this list; a test holds the tasks to it.
"""

import contextlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from recur.errors import ABSENT, UserError, nearest
from recur.runs.files import write_atomic
from recur.runs.limits import read_json

Direction = Literal["max", "min"]
SENTIMENT, LANGUAGE = "sentiment", "language"
_PACKAGE = Path(__file__).resolve().parents[1]
COMMIT = "RECUR_COMMIT"  # variable that says from which commit a sweep's snapshot of the code is


@dataclass(frozen=True)
class MetricInfo:
    """What is known about a metric before any run has written it.

    Attributes:
        name: without its split: `accuracy`, of which a run writes `val/accuracy` and `test/accuracy`.
        families: tasks that log it; empty for what every run records about itself.
        direction: whether more (`max`) or less (`min`) is better.
        unit: of the value as it is logged, empty for a plain number.
        format: how a table shows it, as `format` takes it.
        splits: parts of the data for which it is logged; empty for what a run records about itself.
        in_hparams: whether TensorBoard's HParams tab has a column for it.
        in_line: whether a run's line of an epoch shows it.
    """

    name: str
    families: tuple[str, ...]
    direction: Direction
    unit: str = ""
    format: str = ".4f"
    splits: tuple[str, ...] = ("val", "test")
    in_hparams: bool = True
    in_line: bool = False


_BOTH = (SENTIMENT, LANGUAGE)
METRICS = (
    MetricInfo("loss", _BOTH, "min", "nats", in_line=True),
    MetricInfo("accuracy", (SENTIMENT,), "max", "", ".2%", in_line=True),
    MetricInfo("balanced_accuracy", (SENTIMENT,), "max", "", ".2%"),  # mean of the classes' recalls
    MetricInfo("f1", (SENTIMENT,), "max"),
    MetricInfo("auroc", (SENTIMENT,), "max"),
    MetricInfo("perplexity", (LANGUAGE,), "min", "", ".2f", in_line=True),
    MetricInfo("bpc", (LANGUAGE,), "min", "bits", in_hparams=False, in_line=True),  # where a token is a character
    MetricInfo("accuracy", (LANGUAGE,), "max", "", ".2%", in_hparams=False),
    MetricInfo("epoch_loss", _BOTH, "min", "nats", splits=("train",)),
    MetricInfo("epoch_accuracy", (SENTIMENT,), "max", "", ".2%", splits=("train",)),
    MetricInfo("epoch_perplexity", (LANGUAGE,), "min", "", ".2f", splits=("train",)),
    MetricInfo("parameters", (), "min", "", ",.0f", splits=()),
    MetricInfo("wall_seconds", (), "min", "s", ",.1f", splits=()),
    MetricInfo("train_seconds", (), "min", "s", ",.1f", splits=()),
    MetricInfo("tokens_per_second", (), "max", "tokens/s", ",.0f", splits=()),
    MetricInfo("flop_per_second", (), "max", "FLOP/s", ",.3g", splits=()),  # useful: of the matrix products
    MetricInfo("matrix_rate", (), "max", "FLOP/s", ",.3g", splits=()),  # of large products on the machine
    MetricInfo("bytes_a_step", (), "min", "bytes", ",.0f", splits=()),
    MetricInfo("peak_memory_mib", (), "min", "MiB", ",.0f", splits=()),
    MetricInfo("epochs", (), "min", "", ",.10g", splits=()),
    MetricInfo("steps", (), "min", "", ",.0f", splits=()),
)
_NOT_MEASURED = object()
_FAMILIES = {"recur.tasks.sentiment.": SENTIMENT, "recur.tasks.language_modeling.": LANGUAGE}


def family_of(target: str) -> str | None:
    """The family of the task that a config's `model._target_` names; None for a task from elsewhere."""
    return next((family for module, family in _FAMILIES.items() if target.startswith(module)), None)


def logged(family: str, *splits: str) -> list[str]:
    """The full names of what the task of a family logs for these splits: `val/accuracy`, ..."""
    return [f"{split}/{m.name}" for split in splits for m in METRICS if family in m.families and split in m.splits]


def recorded() -> list[str]:
    """The names of what every run records about itself: `wall_seconds`, ..."""
    return [metric.name for metric in METRICS if not metric.splits]


def hparam_metrics(family: str) -> list[str]:
    """The metrics of the HParams tab: one fixed set a family, since TensorBoard drops columns that runs lack."""
    shown = [m for m in METRICS if family in m.families and m.in_hparams]
    return [f"{split}/{m.name}" for split in ("val", "test") for m in shown if split in m.splits]


def metric_info(name: str) -> MetricInfo | None:
    """What is known about a metric by its full name (`val/accuracy`, `wall_seconds`); None for one from elsewhere."""
    split, _, short = name.rpartition("/")
    return next((m for m in METRICS if m.name == short and (split in m.splits if split else not m.splits)), None)


def direction(name: str) -> Direction:
    """Whether more or less of a metric is better; more for one that is not in the list."""
    info = metric_info(name)
    return "max" if info is None else info.direction


def check_direction(name: str, mode: object, key: str, remedy: str) -> None:
    """Refuse to look for the worst value of a metric of the list.

    Args:
        name: of the metric.
        mode: how its values are compared; other words than `max` and `min` are not looked at.
        key: the setting that holds the mode, for the message.
        remedy: what to do instead.

    Raises:
        UserError: the mode is the other one.
    """
    info = metric_info(name)
    if info is not None and mode in ("max", "min") and mode != info.direction:
        raise UserError(key, mode, f"must be {info.direction} for {name}", remedy)


def format_value(name: str, value: float | None) -> str:
    """A metric's value as a table shows it; empty for None."""
    if value is None:
        return ""
    info = metric_info(name)
    text = format(value, info.format if info else ".4g")
    return text.replace("%", " %") if math.isfinite(value) else f"{value}"


def plain(value: Any) -> Any:
    """Tensors and numpy scalars to numbers, for JSON."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def finite(value: Any) -> Any:
    """A plain value with None in place of the numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory_mib(device: Any) -> float:
    """Peak memory in MiB: on a GPU since `reset_peak_memory`, else resident memory of this process so far.

    Args:
        device: the `torch.device` that computed.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # what the kernel gives below is also of who started this process
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak_memory() -> None:
    """Begin to measure the GPUs' peak memory anew, where this process has used one."""
    import torch

    if torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)


def provenance(device: Any = None) -> dict[str, Any]:
    """Commit of the checkout, versions of what matters, and the machine.

    Args:
        device: the `torch.device` that computed; None for a GPU where there is one.
    """
    import torch

    own = sys.modules["recur"].__version__  # not imported: the package's own file imports this one in the end
    packages = ("torch", "lightning", "hydra-core", "torchmetrics", "datasets", "tokenizers")
    return {
        "commit": os.environ.get(COMMIT) or describe_commit(),
        "python": platform.python_version(),
        "versions": {"recur": own, **{name: _version(name) for name in packages}},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def device_name(device: Any = None) -> str:
    """What a `torch.device` is called; None for a GPU where there is one."""
    import torch

    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else _cpu_name()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # imported from its sources
        return None


def describe_commit(package: Path = _PACKAGE) -> str | None:
    """The commit of the checkout as `git describe` has it, `-dirty` where files differ; None outside of one.

    Args:
        package: this one. Installed below somebody else's work tree it is no part of that: git does not track it.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        return _git(package, "describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def write_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Write `metrics.json`; a figure that is not finite as null."""
    text = json.dumps(finite(plain(record)), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "metrics.json", text + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """`metrics.json` of a run folder, None where there is none or it is damaged."""
    try:
        record = read_json(folder / "metrics.json")
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def metric(record: Mapping[str, Any], name: str) -> float | None:
    """A number of `metrics.json` by name: `val/accuracy`, `wall_seconds`, `parameters` (the trainable ones).

    NaN for a metric of a split that was measured and is not finite, which the file has as null.
    """
    node: Any = record
    for part in name.split("/"):
        node = node.get(part, _NOT_MEASURED) if isinstance(node, Mapping) else _NOT_MEASURED
    if node is None and "/" in name:
        return math.nan
    if name == "parameters" and isinstance(node, Mapping):
        node = node.get("trainable")
    if not isinstance(node, (int, float)) or isinstance(node, bool):
        return None
    try:
        return float(node)
    except OverflowError:  # JSON knows whole numbers of any length
        return math.inf if node > 0 else -math.inf


def metric_names(record: Mapping[str, Any]) -> list[str]:
    """Every name `metric` knows in a record."""
    names = []
    for key, value in record.items():
        if key in ("val", "test") and isinstance(value, Mapping):
            names += [f"{key}/{name}" for name in value]
        elif metric(record, key) is not None:
            names.append(key)
    return names


def check_metric(name: str, family: str | None, *, resources: bool = False, key: str = "") -> None:
    """Refuse a metric that no run will write.

    Args:
        name: full name, such as `val/accuracy`.
        family: of the task, as `family_of` gives it; None checks nothing.
        resources: whether the test split's metrics and what a run records about itself count as well.
        key: the setting that holds the name, for the message.

    Raises:
        UserError: the task of this family logs no such metric.
    """
    if family is None or not name:
        return
    known = logged(family, "val") + (logged(family, "test") + recorded() if resources else logged(family, "train"))
    if name not in known:
        hint = nearest(name, known).removeprefix(": ")
        rule = f"must be a metric that a {family} run writes"
        raise UserError(
            key,
            name if key else ABSENT,
            rule if key else f"no {family} run writes the metric {name!r}",
            f"{hint} it can be {', '.join(known)}".strip(),
        )
