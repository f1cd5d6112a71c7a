"""The training curves of a run as a figure, for a notebook or a file."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recur.errors import UserError, nearest
from recur.runs.metrics import direction, metric_info

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

PANEL = (4.4, 3.2)  # inches
_COLOURS = {"val": "#2f7ed8", "train": "#d9662b"}  # blue and orange: colour-blind readers can tell them apart
_NAMES = {"val": "validation", "train": "training"}
_OTHERS = ("#5b6470", "#7a5aa6", "#2a8a6e")
Others = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""Curves from elsewhere: by metric without its split, by name, the epochs and values."""


class Curves(Figure):
    """A figure that a notebook shows as an image although pyplot has not been imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()


def drawable(history: "pd.DataFrame") -> dict[str, dict[str, str]]:
    """The metrics that a history has, by name without split, and the column of each split.

    `train/epoch_loss` is the training side of `loss`: the mean over an epoch, beside which the last step's own
    `train/loss` would be noise.
    """
    curves: dict[str, dict[str, str]] = {}
    for column in map(str, history.columns):
        split, _, short = column.partition("/")
        if split not in _NAMES or not history[column].notna().any():
            continue
        name = short.removeprefix("epoch_")
        if split == "train" and name == short and f"train/epoch_{name}" in history.columns:
            continue
        curves.setdefault(name, {})[split] = column
    return {name: columns for name, columns in curves.items() if "val" in columns}


def points(history: "pd.DataFrame", column: str) -> tuple[list[float], list[float]]:
    """The epochs and values of a metric.

    Earlier versions wrote down a validation with the training figures of the epoch before.
    """
    rows = history[history[column].notna()]
    epochs = rows["epoch"].tolist()
    if column.startswith("train/epoch_"):
        present = rows["training"].notna() if "training" in rows else [False] * len(rows)
        epochs = [e if own else float(math.ceil(e) - 1) for e, own in zip(epochs, present, strict=True)]
    values = dict(zip(epochs, rows[column].tolist(), strict=True))
    return list(values), list(values.values())


def draw(
    history: "pd.DataFrame",
    names: Sequence[str] = (),
    monitor: str = "",
    mode: str = "",
    reference: Others | None = None,
) -> Curves:
    """One panel a metric: validation and, where it is logged, training, over epochs; the best validation is marked.

    Args:
        history: the validations of a run, as `Run.history` gives them.
        names: metrics without their split, such as `loss`; none for the loss and the monitored one.
        monitor: the run's own metric, such as `val/accuracy`.
        mode: `max` or `min`, whether more or less of that is better.
        reference: curves from elsewhere to draw beside the run's own, by metric, which gets a panel where it has none.

    Raises:
        UserError: there are no validations, or none has such a metric.
    """
    known = drawable(history)
    if not known:
        raise UserError("plot", rule="has nothing to draw: the run has no history.jsonl with validations")
    reference = reference or {}
    for name in [*names, *reference]:
        if name not in known:
            rule = f"must be a metric that the run's validations have: {', '.join(known)}"
            raise UserError("plot", name, rule, nearest(name, known).removeprefix(": "))
    own = monitor.partition("/")[2]
    chosen = names or [name for name in ("loss", own) if name in known] or list(known)[:1]
    shown = list(dict.fromkeys([*chosen, *reference]))
    figure = Curves(figsize=(PANEL[0] * len(shown), PANEL[1]), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for split in ("train", "val"):
            if (column := known[name].get(split)) is not None:
                x, y = points(history, column)
                axes.plot(x, y, color=_COLOURS[split], label=_NAMES[split], marker="o", ms=3)
        for colour, (label, other) in zip(itertools.cycle(_OTHERS), reference.get(name, {}).items(), strict=False):
            axes.plot(*zip(*other, strict=True), color=colour, label=label, lw=1, ls="--", marker=".", ms=3)
        info = metric_info(f"val/{name}")
        way = mode if info is None and name == own and mode else direction(f"val/{name}")
        _mark_best(axes, history, known[name]["val"], way)
        axes.set_title(f"{name} ({info.unit})" if info and info.unit else name, loc="left", size=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure


def _mark_best(axes: object, history: "pd.DataFrame", column: str, way: str) -> None:
    values = history[column].dropna()
    at = values.idxmin() if way == "min" else values.idxmax()
    x, y = float(history["epoch"][at]), float(values[at])
    axes.plot([x], [y], "o", ms=8, mfc="none", mec=_COLOURS["val"])  # type: ignore[attr-defined]
    axes.annotate(  # type: ignore[attr-defined]
        f"{y:.4g}", (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9, color=_COLOURS["val"]
    )
