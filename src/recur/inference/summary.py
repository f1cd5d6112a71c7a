"""A run as a notebook shows it: what it is, its figures and its settings, as HTML in which no text can act."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recur.render import shortened, templates
from recur.runs.metrics import format_value

_LONGEST = 120  # characters of a value
_SPLITS = ("val", "test")


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by their paths: `{"optimizer": {"lr": 1}}` as `{"optimizer.lr": 1}`."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{above}.{key}" if above else str(key)
        values |= flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return values


def facts(config: Mapping[str, Any], family: str, parameters: int) -> dict[str, str]:
    """What tells a run from others, in a few words each."""
    paths = flat(config)
    wanted = {
        "family": family,
        "model": paths.get("model.net._target_", paths.get("model._target_", "")),
        "cell": paths.get("model.net.cell"),
        "parameters": f"{parameters:,}",
        "data": paths.get("data._target_"),
        "optimizer": paths.get("optimizer._target_"),
        "learning rate": paths.get("optimizer.lr"),
        "epochs": paths.get("trainer.max_epochs"),
        "seed": paths.get("seed"),
        "tags": ", ".join(map(str, config.get("tags") or [])) or None,
    }
    return {name: _shown(name, value) for name, value in wanted.items() if value is not None}


def _shown(name: str, value: Any) -> str:
    text = str(value)
    return shortened(text.rpartition(".")[2] if name in ("model", "data", "optimizer") else text, _LONGEST)


def page(place: Path, config: Mapping[str, Any], record: Mapping[str, Any], family: str, parameters: int) -> str:
    """The HTML.

    Args:
        place: folder or checkpoint of the run.
        config: of the run.
        record: its `metrics.json`; empty where there is none.
        family: of its task.
        parameters: how many.
    """
    results = {split: record[split] for split in _SPLITS if isinstance(record.get(split), Mapping)}
    names = dict.fromkeys(str(name) for values in results.values() for name in values)
    rows = [(name, [_figure(split, name, values.get(name)) for split, values in results.items()]) for name in names]
    template = templates(Path(__file__).resolve().parents[1] / "templates").get_template("run.html")
    return template.render(
        title=shortened(str(config.get("name", "")), _LONGEST),
        place=shortened(str(place), 2 * _LONGEST),
        facts=facts(config, family, parameters),
        splits=list(results),
        rows=rows,
        settings={shortened(key, _LONGEST): shortened(str(value), _LONGEST) for key, value in flat(config).items()},
    )


def _figure(split: str, name: str, value: Any) -> str:
    number = float(value) if isinstance(value, (int, float)) else None
    return format_value(f"{split}/{name}", number)
