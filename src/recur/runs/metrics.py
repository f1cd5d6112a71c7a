"""The metrics that a run writes, and `metrics.json`."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recur.errors import nearest
from recur.runs.run import write_atomic

# The metrics of the HParams tab: one fixed set a family, since TensorBoard drops columns that runs do not share.
HPARAM_METRICS = {
    "sentiment": ("val/accuracy", "val/loss", "test/accuracy", "test/f1", "test/auroc"),
    "language": ("val/loss", "val/perplexity", "test/loss", "test/perplexity"),
}
_LESS_IS_BETTER = ("loss", "perplexity", "bpc", "seconds", "parameters", "memory")
# What the tasks log on a validation, by which a mistyped metric is found before any job starts.
METRICS = {
    "recur.tasks.sentiment.": ("loss", "accuracy", "f1", "auroc"),
    "recur.tasks.language_modeling.": ("loss", "perplexity", "bpc", "accuracy"),
}
RESOURCES = ("parameters", "wall_seconds", "train_seconds", "tokens_per_second", "peak_memory_mib", "epochs", "steps")


def plain(value: Any) -> Any:
    """Tensors and numpy scalars to numbers, for JSON."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def peak_memory_mib() -> float:
    """Peak memory of this process so far in MiB: the GPU's where one was used, else resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def provenance() -> dict[str, Any]:
    """Commit of the checkout, versions of what matters, and the machine."""
    import torch

    packages = ("recur", "torch", "lightning", "hydra-core", "torchmetrics", "datasets", "tokenizers")
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def write_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Write `metrics.json`."""
    write_atomic(folder / "metrics.json", json.dumps(plain(record), indent=2, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """`metrics.json` of a run folder, None where there is none or it is damaged."""
    try:
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def metric(record: Mapping[str, Any], name: str) -> float | None:
    """A number of `metrics.json` by name: `val/accuracy`, `wall_seconds`, `parameters` (the trainable ones)."""
    node: Any = record
    for part in name.split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    if name == "parameters" and isinstance(node, Mapping):
        node = node.get("trainable")
    return float(node) if isinstance(node, (int, float)) and not isinstance(node, bool) else None


def metric_names(record: Mapping[str, Any]) -> list[str]:
    """Every name `metric` knows in a record."""
    names = []
    for key, value in record.items():
        if key in ("val", "test") and isinstance(value, Mapping):
            names += [f"{key}/{name}" for name in value]
        elif metric(record, key) is not None:
            names.append(key)
    return names


def check_metric(name: str, cfg: DictConfig, resources: bool = False) -> None:
    """Refuse a metric that no job will write.

    Raises:
        ValueError: the task of this config logs no such metric.
    """
    target = str((cfg.get("model") or {}).get("_target_", ""))
    logged = next((names for module, names in METRICS.items() if target.startswith(module)), None)
    if logged is None or not name:
        return
    known = [f"val/{metric}" for metric in logged]
    if resources:
        known += [f"test/{metric}" for metric in logged] + list(RESOURCES)
    if name not in known:
        raise ValueError(f"no run writes the metric {name!r}{nearest(name, known)} It can be {', '.join(known)}")
