"""The plots of a leaderboard, drawn so that they stand on light and on dark ground alike."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recur.leaderboard.importance import importance
from recur.leaderboard.reading import numbers
from recur.leaderboard.table import Group, Leaderboard, brief, short
from recur.render import shortened
from recur.runs.metrics import format_value, metric_info

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # what the page replaces by the colour of its text
GROUND = "#fdfefc"  # and this one by the colour under the plot
FAINT = "#8a8f98"
SERIES = ("#2f7ed8", "#d9662b", "#2a9d6f", "#a15fc9", "#c2912a")
PANEL, HALF, WIDE = (4.0, 3.0), (6.4, 3.8), (9.0, 3.6)  # inches
EXPLODED = 100  # times the best value: then the others would be one line at the bottom
_MOST_VALUES = 8  # of numbers that an axis shows one by one, with their mean
STYLE = {
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "recur",
    "path.simplify": True,
}


class Plot(NamedTuple):
    """A drawing for the page.

    Attributes:
        title: what it shows.
        svgs: drawings to be put into HTML as they are; several stand side by side as far as there is space.
        wide: whether it takes the whole width.
    """

    title: str
    svgs: list[str]
    wide: bool


FILES = tuple(f"{stem}.png" for stem in ("settings", "curves", "importance", "coordinates"))  # that `draw` may write


def draw(leaderboard: Leaderboard, folder: Path) -> list[Plot]:
    """Write every plot that the leaderboard has matter for as PNG; return them for the page.

    Those that an earlier call wrote, and that this leaderboard has no matter for, are removed.
    """
    from matplotlib import rc_context

    metric, share = leaderboard.metric, "Importance of each setting, as Optuna estimates it"
    plots, written = [], set()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a setting in a script the font lacks
        shares = importance(leaderboard)
        whole = settings(leaderboard, leaderboard.varied, shares)
        if whole is not None:
            written.add(_save(whole, folder, "settings"))
            panels = [settings(leaderboard, [key], shares) for key in leaderboard.varied]
            svgs = [_inline(one, f"settings{i}") for i, one in enumerate(panels) if one is not None]
            plots.append(Plot(f"{metric} against each setting", svgs, len(svgs) > 1))
        alone = len(shares) < 2 and len(leaderboard.varied) != 1  # then the curves have no neighbour
        for title, stem, figure, wide in (
            (
                f"{metric} during training, the best settings in colour",
                "curves",
                curves(leaderboard, WIDE if alone else HALF),
                alone,
            ),
            (share, "importance", shares_of_settings(shares, HALF), False),
            (
                "All settings together: one line a run, the best in orange",
                "coordinates",
                coordinates(leaderboard, WIDE),
                True,
            ),
        ):
            if figure is not None:
                written.add(_save(figure, folder, stem))
                plots.append(Plot(title, [_inline(figure, stem)], wide))
    for name in set(FILES) - written:
        if not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)
    return plots


def _save(figure: "Figure", folder: Path, stem: str) -> str:
    """Write one of `FILES`; return its name."""
    name = f"{stem}.png"
    figure.savefig(folder / name, dpi=150, facecolor="white")
    return name


def _inline(figure: "Figure", name: str) -> str:
    """A figure as SVG to be put into a page: no prologue, its ink the page's, its ids its own."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    body = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(GROUND, "var(--card)")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    return re.sub(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", body, count=1)


def _done(leaderboard: Leaderboard) -> list[tuple[Group, float]]:
    return [(group, r.value) for group in leaderboard.groups for r in group.done if r.value is not None]


def _spans_decades(values: list[float]) -> bool:
    """Whether positive numbers lie so far apart that they are read on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= 30


def _positions(texts: Sequence[str]) -> tuple[list[float], list[str] | None, bool]:
    """Places on an axis: (of each text, tick labels where they are words, whether the axis is logarithmic)."""
    values = numbers(texts)
    distinct = set(values) if values is not None else set()
    if values is not None and len(distinct) > _MOST_VALUES:
        return values, None, _spans_decades(values)
    order = sorted(dict.fromkeys(texts), key=float if values is not None else None)
    place = {text: float(index) for index, text in enumerate(order)}
    return [place[text] for text in texts], order, False


def _clip(text: str, length: int = 22) -> str:
    r"""A typed text, for a plot: of bearable length, and `\$`, since `$` would begin a formula."""
    return shortened(text, length).replace("$", r"\$")


def settings(leaderboard: Leaderboard, keys: Sequence[str], shares: Mapping[str, float]) -> "Figure | None":
    """The metric against varied settings: every run a dot, the mean of each value a mark.

    Means of numbers are joined, those of categories are not: there is nothing between two of them.

    Args:
        leaderboard: what to draw.
        keys: of the settings.
        shares: importance of each, where it is known.
    """
    from matplotlib.figure import Figure

    done = _done(leaderboard)
    if not keys or len(done) < 2:
        return None
    columns = min(4, len(keys))
    rows = math.ceil(len(keys) / columns)
    size = (PANEL[0] * columns, PANEL[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, key in zip(axes.flat, keys, strict=False):
        _setting(place, leaderboard, key, done, shares.get(key))
    for index, place in enumerate(axes.flat):
        if index >= len(keys):
            place.remove()
        elif index % columns == 0:
            place.set_ylabel(_clip(leaderboard.metric, 60))
    return figure


def _setting(
    place: "Axes", leaderboard: Leaderboard, key: str, done: Sequence[tuple[Group, float]], share: float | None
) -> None:
    values = [value for _, value in done]
    texts = [group.settings[key] for group, _ in done]
    xs, labels, log = _positions(texts)
    if log:
        place.set_xscale("log")
    place.scatter(xs, values, s=22, color=SERIES[0], alpha=0.8 if labels is None else 0.45, linewidths=0)
    if labels is not None:
        alike: list[list[float]] = [[] for _ in labels]
        for x, value in zip(xs, values, strict=True):
            alike[int(x)].append(value)
        means = [sum(same) / len(same) for same in alike]
        ordered = numbers(labels) is not None
        mark: dict[str, Any] = {"marker": "o", "markersize": 4} if ordered else {"marker": "_", "markersize": 22}
        place.plot(
            range(len(labels)), means, color=SERIES[0], linewidth=1.5, markeredgewidth=2,
            linestyle="-" if ordered else "none", **mark,
        )  # fmt: skip
        crowded = sum(len(_clip(label)) for label in labels) > 26
        turn: dict[str, Any] = {"rotation": 25, "ha": "right"} if crowded else {}
        place.set_xticks(range(len(labels)), [_clip(brief(label)) or "not set" for label in labels], **turn)
        place.margins(x=0.2 if len(labels) < 4 else 0.08)
    place.set_title(
        _clip(short(key, leaderboard.varied), 28) + (f", importance {100 * share:.0f} %" if share is not None else "")
    )
    _value_axis(place, leaderboard, values)


def _exploded(leaderboard: Leaderboard, values: Sequence[float]) -> bool:
    """Whether some values are so much worse than the best that only a logarithmic axis tells the others apart.

    Where more is better, the worst are small, and a logarithmic axis would be theirs.
    """
    return leaderboard.mode == "min" and min(values) > 0 and max(values) / min(values) >= EXPLODED


def _value_axis(place: "Axes", leaderboard: Leaderboard, values: Sequence[float]) -> None:
    """The metric's axis: percent where shown so, logarithmic where runs exploded, with the best possible value."""
    from matplotlib.ticker import PercentFormatter

    info = metric_info(leaderboard.metric)
    if _exploded(leaderboard, values):
        place.set_yscale("log")
    elif info is not None and info.format.endswith("%"):
        place.yaxis.set_major_formatter(PercentFormatter(1.0))
    if leaderboard.ceiling is not None:
        place.axhline(leaderboard.ceiling, color=SERIES[1], linewidth=1, linestyle=":")
        place.annotate(
            f"best possible {format_value(leaderboard.metric, leaderboard.ceiling)}",
            (0, leaderboard.ceiling), (4, -3 if leaderboard.mode == "max" else 3),
            xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="left", va="top" if leaderboard.mode == "max" else "bottom", fontsize=9, color=SERIES[1],
        )  # fmt: skip


def curves(leaderboard: Leaderboard, size: tuple[float, float]) -> "Figure | None":
    """The metric at every validation; the best settings in colour, the others faint, pruned runs dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    known = [
        (rank, group, r.points(leaderboard.metric), r)
        for rank, group in enumerate(leaderboard.groups)
        for r in group.results
    ]
    known = [item for item in known if item[2]]
    if not known:
        return None
    figure = Figure(figsize=size, layout="constrained")
    place = figure.subplots()
    shown: set[int] = set()
    every: list[float] = []
    bold = [rank for rank, group in enumerate(leaderboard.groups) if group.mean is not None][: len(SERIES)]
    for rank, group, points, result in sorted(known, key=lambda item: -item[0]):
        xs, ys = zip(*points, strict=True)
        every += ys
        style: dict[str, Any] = {"linestyle": "--" if result.state != "done" else "-"}
        marker = "o" if len(xs) == 1 else None
        if rank in bold:
            label = None if rank in shown else _clip(group.label(), 56)
            shown.add(rank)
            place.plot(xs, ys, color=SERIES[bold.index(rank)], linewidth=1.6, marker=marker, label=label, **style)
        else:
            place.plot(xs, ys, color=FAINT, alpha=0.5, linewidth=0.9, marker=marker, markersize=3, **style)
    place.set_xlabel("epoch")
    _value_axis(place, leaderboard, every)
    place.set_ylabel(_clip(leaderboard.metric, 60))
    place.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, labels = place.get_legend_handles_labels()
    if labels:
        figure.legend(handles[::-1], labels[::-1], loc="outside lower left", fontsize=9)
    return figure


def coordinates(leaderboard: Leaderboard, size: tuple[float, float]) -> "Figure | None":
    """Parallel coordinates: one line a run through all its settings to its metric."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
    from matplotlib.figure import Figure

    done = _done(leaderboard)
    if len(leaderboard.varied) < 2 or len(done) < 3:
        return None
    values = [value for _, value in done]
    ground = LinearSegmentedColormap.from_list("good", ["#9aa0a8", "#7fa6d0", "#2f7ed8", "#e07b1f"])
    exploded = _exploded(leaderboard, values)
    scale = LogNorm if exploded else Normalize
    norm = scale(min(values), max(values)) if min(values) < max(values) else Normalize(0, 1)
    colours = ScalarMappable(norm, ground if leaderboard.mode == "max" else ground.reversed())
    keys = [*leaderboard.varied, leaderboard.metric]
    figure = Figure(figsize=size, layout="constrained")
    place = figure.subplots()
    tracks: list[list[float]] = []
    for index, key in enumerate(keys):
        last = key == leaderboard.metric
        texts = [repr(v) for v in values] if last else [group.settings[key] for group, _ in done]
        places, labels, log = (values, None, exploded) if last else _positions(texts)
        tracks.append(_axis(place, index, places, labels, log, leaderboard.metric if last else ""))
    order = sorted(range(len(done)), key=lambda i: values[i], reverse=leaderboard.mode == "min")
    for i in order:
        height = [track[i] for track in tracks]
        place.plot(range(len(keys)), height, color=colours.cmap(norm(values[i])), alpha=0.75, linewidth=1.4)
    place.set_xticks(range(len(keys)), [_clip(short(k, keys) if k != leaderboard.metric else k, 18) for k in keys])
    place.tick_params(axis="x", length=0, pad=6)
    place.set_yticks([])
    place.set_xlim(-0.01, len(keys) - 0.99)
    place.set_ylim(-0.05, 1.06)
    place.grid(False)
    place.spines[:].set_visible(False)
    return figure


def _axis(
    place: "Axes", index: int, values: list[float], labels: list[str] | None, log: bool, metric: str
) -> list[float]:
    """Draw one upright axis with its values, those of a metric as a table shows them; return the heights of the runs.

    The values of the first axis stand to its left, where no lines are.
    """
    from matplotlib.patheffects import withStroke

    scaled = [math.log10(v) for v in values] if log else values
    low, high = min(scaled), max(scaled)

    def height(value: float) -> float:
        return 0.5 if high == low else (value - low) / (high - low)

    place.plot([index, index], [0, 1], color=FAINT, linewidth=1, zorder=0)
    if labels is not None:
        ticks = [(height(i), brief(label) or "not set") for i, label in enumerate(labels)]
    else:
        ends = [low, (low + high) / 2, high] if high > low else [low]
        shown = [10**v if log else v for v in ends]
        texts = [format_value(metric, v) if metric else brief(f"{v:.7g}") for v in shown]
        ticks = [(height(v), text) for v, text in zip(ends, texts, strict=True)]
    left = index == 0
    beside: dict[str, Any] = {"ha": "right" if left else "left", "va": "center", "textcoords": "offset points"}
    halo = [withStroke(linewidth=3, foreground=GROUND)]
    for where, text in ticks:
        at, shift = (index, where), (-7 if left else 7, 0)
        place.annotate(_clip(text, 14), at, shift, fontsize=9, color=INK, path_effects=halo, **beside)
    return [height(v) for v in scaled]


def shares_of_settings(shares: Mapping[str, float], size: tuple[float, float]) -> "Figure | None":
    """How much each setting matters."""
    from matplotlib.figure import Figure

    if len(shares) < 2:
        return None
    figure = Figure(figsize=size, layout="constrained")
    place = figure.subplots()
    names = [_clip(short(key, shares), 30) for key in shares]
    bars = place.barh(
        range(len(names)),
        [100 * share for share in shares.values()],
        color=SERIES[0],
        height=min(0.62, 0.14 * len(names)),
    )
    place.bar_label(bars, [f"{100 * share:.0f} %" for share in shares.values()], padding=4, color=INK)
    place.set_yticks(range(len(names)), names)
    place.invert_yaxis()
    place.set_xlim(0, 112)
    place.set_xticks([])
    place.grid(False)
    place.spines[:].set_visible(False)
    place.tick_params(axis="y", length=0)
    return figure
