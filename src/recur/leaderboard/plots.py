"""The pictures of a leaderboard, drawn so that they stand on light and on dark ground alike."""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recur.leaderboard.table import Group, Leaderboard, brief, numbers, short
from recur.render import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
INK = "#010203"  # what the page replaces by the colour of its text
GROUND = "#fdfefc"  # and this one by the colour under the picture
FAINT = "#8a8f98"
SERIES = ("#2f7ed8", "#d9662b", "#2a9d6f", "#a15fc9", "#c2912a")
HALF, WIDE = (6.4, 3.8), (13.2, 3.6)  # inches
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


class Picture(NamedTuple):
    """A drawing for the page.

    Attributes:
        title: what it shows.
        svg: to be put into HTML as it is.
        wide: whether it wants the whole width.
    """

    title: str
    svg: str
    wide: bool


def draw(leaderboard: Leaderboard, folder: Path) -> list[Picture]:
    """Write every picture that the leaderboard has matter for as PNG; return them for the page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure

    few, many = len(leaderboard.varied) < 3, len(leaderboard.varied) > 3
    plan: list[tuple[str, str, Callable[[Leaderboard, tuple[float, float]], Figure | None], bool]] = [
        ("settings", f"{leaderboard.metric} against each setting", settings, not few),
        ("curves", f"{leaderboard.metric} during training, the best settings in colour", curves, False),
        ("importance", f"Variance of {leaderboard.metric} that each setting explains alone", importance, False),
        ("coordinates", "All settings together: one line a run, the best in orange", coordinates, few or many),
    ]
    drawn = []
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a setting in a script the font lacks
        made = [(*entry, make(leaderboard, WIDE if wide else HALF)) for entry in plan for make, wide in [entry[2:]]]
        made = [entry for entry in made if entry[-1] is not None]
        shown = [entry for entry in made if entry[0] != "importance" or many]  # few settings bear it in their titles
        halves = [entry[0] for entry in shown if not entry[3]]
        for name, title, make, wide, figure in made:
            assert figure is not None
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")
            if len(halves) % 2 and name == halves[-1]:  # it has no neighbour
                plt.close(figure)
                wide, figure = True, make(leaderboard, WIDE)
                assert figure is not None
            text = StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
            plt.close(figure)
            if name in [entry[0] for entry in shown]:
                drawn.append(Picture(title, _inline(text.getvalue(), name), wide))
    return drawn


def _inline(svg: str, name: str) -> str:
    """An SVG to be put into a page: no prologue, its ink the page's, its ids its own."""
    body = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(GROUND, "var(--card)")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", body)
    return re.sub(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", body, count=1)


def _done(leaderboard: Leaderboard) -> list[tuple[Group, float]]:
    return [(group, r.value) for group in leaderboard.groups for r in group.done if r.value is not None]


def _positions(texts: Sequence[str]) -> tuple[list[float], list[str] | None, bool]:
    """Places on an axis: (of each text, tick labels where they are words, whether the axis is logarithmic)."""
    values = numbers(texts)
    distinct = sorted(set(values)) if values is not None else []
    if values is not None and len(distinct) > max(4, len(texts) / 2):
        return values, None, distinct[0] > 0 and distinct[-1] / distinct[0] >= 30
    order = sorted(dict.fromkeys(texts), key=float if values is not None else None)
    return [float(order.index(text)) for text in texts], order, False


def _clip(text: str, length: int = 22) -> str:
    r"""A text somebody typed, for a picture: of bearable length, and `\$`, since `$` would begin a formula."""
    return shortened(text, length).replace("$", r"\$")


def settings(leaderboard: Leaderboard, size: tuple[float, float]) -> "Figure | None":
    """The metric against each varied setting: every run a dot, the mean of each value a line."""
    from matplotlib import pyplot as plt

    done = _done(leaderboard)
    if not leaderboard.varied or len(done) < 2:
        return None
    columns = min(4, len(leaderboard.varied))
    rows = math.ceil(len(leaderboard.varied) / columns)
    size = (size[0], size[1] if rows == 1 else 2.9 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    values = [value for _, value in done]
    shares = leaderboard.importance()
    for place, key in zip(axes.flat, leaderboard.varied, strict=False):
        texts = [group.settings[key] for group, _ in done]
        xs, labels, log = _positions(texts)
        if log:
            place.set_xscale("log")
        place.scatter(xs, values, s=22, color=SERIES[0], alpha=0.8 if labels is None else 0.45, linewidths=0)
        if labels is not None:
            means = [_mean([v for x, v in zip(xs, values, strict=True) if x == i]) for i in range(len(labels))]
            place.plot(range(len(labels)), means, color=SERIES[0], marker="o", markersize=4, linewidth=1.5)
            crowded = sum(len(_clip(label)) for label in labels) > 34
            turn = {"rotation": 25, "ha": "right"} if crowded else {}
            place.set_xticks(range(len(labels)), [_clip(brief(label)) for label in labels], **turn)
            place.margins(x=0.2 if len(labels) < 4 else 0.08)
        part = f", explains {100 * shares[key]:.0f} %" if key in shares else ""
        place.set_title(_clip(short(key), 28) + part)
    for index, place in enumerate(axes.flat):
        if index >= len(leaderboard.varied):
            place.remove()
        elif index % columns == 0:
            place.set_ylabel(_clip(leaderboard.metric, 60))
    return figure


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def curves(leaderboard: Leaderboard, size: tuple[float, float]) -> "Figure | None":
    """The metric at every validation; the best settings in colour, the others faint, pruned runs dashed."""
    from matplotlib import pyplot as plt

    known = [
        (rank, group, r.points(leaderboard.metric), r)
        for rank, group in enumerate(leaderboard.groups)
        for r in group.results
    ]
    known = [item for item in known if item[2]]
    if not known:
        return None
    figure, place = plt.subplots(figsize=size, layout="constrained")
    shown: set[int] = set()
    bold = [rank for rank, group in enumerate(leaderboard.groups) if group.mean is not None][: len(SERIES)]
    for rank, group, points, result in sorted(known, key=lambda item: -item[0]):
        xs, ys = zip(*points, strict=True)
        style: dict[str, Any] = {"linestyle": "--" if result.state != "done" else "-"}
        marker = "o" if len(xs) == 1 else None
        if rank in bold:
            label = None if rank in shown else _clip(group.label(), 56)
            shown.add(rank)
            place.plot(xs, ys, color=SERIES[bold.index(rank)], linewidth=1.6, marker=marker, label=label, **style)
        else:
            place.plot(xs, ys, color=FAINT, alpha=0.5, linewidth=0.9, marker=marker, markersize=3, **style)
    place.set_xlabel("epoch")
    place.set_ylabel(_clip(leaderboard.metric, 60))
    place.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = place.get_legend_handles_labels()
    if labels:
        figure.legend(handles[::-1], labels[::-1], loc="outside lower left", fontsize=9)
    return figure


def coordinates(leaderboard: Leaderboard, size: tuple[float, float]) -> "Figure | None":
    """Parallel coordinates: one line a run through all its settings to its metric."""
    from matplotlib import pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    done = _done(leaderboard)
    if len(leaderboard.varied) < 2 or len(done) < 3:
        return None
    values = [value for _, value in done]
    ground = LinearSegmentedColormap.from_list("good", ["#9aa0a8", "#7fa6d0", "#2f7ed8", "#e07b1f"])
    norm = Normalize(min(values), max(values)) if min(values) < max(values) else Normalize(0, 1)
    colours = ScalarMappable(norm, ground if leaderboard.mode == "max" else ground.reversed())
    keys = [*leaderboard.varied, leaderboard.metric]
    figure, place = plt.subplots(figsize=size, layout="constrained")
    tracks: list[list[float]] = []
    for index, key in enumerate(keys):
        last = key == leaderboard.metric
        texts = [repr(v) for v in values] if last else [group.settings[key] for group, _ in done]
        places, labels, log = (values, None, False) if last else _positions(texts)
        tracks.append(_axis(place, index, places, labels, log, left=index == 0))
    order = sorted(range(len(done)), key=lambda i: values[i], reverse=leaderboard.mode == "min")
    for i in order:
        height = [track[i] for track in tracks]
        place.plot(range(len(keys)), height, color=colours.cmap(norm(values[i])), alpha=0.75, linewidth=1.4)
    place.set_xticks(range(len(keys)), [_clip(short(k) if k != leaderboard.metric else k, 18) for k in keys])
    place.tick_params(axis="x", length=0, pad=6)
    place.set_yticks([])
    place.set_xlim(-0.01, len(keys) - 0.99)
    place.set_ylim(-0.05, 1.06)
    place.grid(False)
    place.spines[:].set_visible(False)
    return figure


def _axis(
    place: "Axes", index: int, values: list[float], labels: list[str] | None, log: bool, left: bool
) -> list[float]:
    """Draw one upright axis with its values, beside the lines where it can; return the heights of the runs on it."""
    from matplotlib.patheffects import withStroke

    scaled = [math.log10(v) for v in values] if log else values
    low, high = min(scaled), max(scaled)

    def height(value: float) -> float:
        return 0.5 if high == low else (value - low) / (high - low)

    place.plot([index, index], [0, 1], color=FAINT, linewidth=1, zorder=0)
    if labels is not None:
        ticks = [(height(i), brief(label)) for i, label in enumerate(labels)]
    else:
        ends = [low, (low + high) / 2, high] if high > low else [low]
        ticks = [(height(v), f"{10**v if log else v:.3g}") for v in ends]
    beside: dict[str, Any] = {"ha": "right" if left else "left", "va": "center", "textcoords": "offset points"}
    halo = [withStroke(linewidth=3, foreground=GROUND)]
    for where, text in ticks:
        at, shift = (index, where), (-7 if left else 7, 0)
        place.annotate(_clip(text, 14), at, shift, fontsize=9, color=INK, path_effects=halo, **beside)
    return [height(v) for v in scaled]


def importance(leaderboard: Leaderboard, size: tuple[float, float]) -> "Figure | None":
    """How much of the variance each setting explains alone."""
    from matplotlib import pyplot as plt

    shares = leaderboard.importance()
    if len(shares) < 2:
        return None
    figure, place = plt.subplots(figsize=size, layout="constrained")
    names = [_clip(short(key), 30) for key in shares]
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
