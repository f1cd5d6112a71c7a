"""Charts as SVG, drawn for light and dark ground alike: every colour is a variable of the page."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 132, 14, 46
SERIES = 6  # colours that the page has


@dataclass
class Series:
    """Points of one arm: the mean at each x, and every seed's own value.

    Attributes:
        name: of the arm.
        points: x to the values of the seeds.
    """

    name: str
    points: dict[float, list[float]] = field(default_factory=dict)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two ends."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Decimal logarithms of 1, 2 and 5 times powers of ten between two ends; of powers alone where there are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    step = max(1, round((high - low) / 6))
    if high - low > 2.5:
        return [float(power) for power in powers if low <= power <= high and power % step == 0]
    fine = [power + math.log10(factor) for power in powers for factor in (1, 2, 5)]
    inside = [tick for tick in fine if low <= tick <= high]
    return inside if len(inside) > 1 else _ticks(low, high)


def _label(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}"
    return f"{value:.7g}"  # a tick, which its step has rounded


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    marks: Mapping[float, str] | None = None,
    names: Sequence[str] = (),
    log_y: bool = False,
) -> str:
    """A line an arm over x, with a dot a seed.

    Args:
        series: the arms.
        x_label: name of the x axis.
        y_label: name of the y axis.
        marks: horizontal lines with their names, such as chance.
        names: words for x = 0, 1, ...; then x is no number.
        log_y: logarithmic y axis; values of 0 and below are left out.
    """
    scaled = [
        Series(
            s.name, {x: [math.log10(v) if log_y else v for v in vs if v > 0 or not log_y] for x, vs in s.points.items()}
        )
        for s in series
    ]
    scaled = [Series(s.name, {x: vs for x, vs in sorted(s.points.items()) if vs}) for s in scaled]
    level = {(math.log10(y) if log_y else y): text for y, text in (marks or {}).items()}
    xs = [x for s in scaled for x in s.points]
    ys = [v for s in scaled for vs in s.points.values() for v in vs if math.isfinite(v)] + list(level)
    if not xs or not ys:
        return ""
    x_low, x_high = (-0.5, len(names) - 0.5) if names else (min(xs), max(xs))
    y_low, y_high = min(ys), max(ys)
    pad = 0.06 * (y_high - y_low) or max(abs(y_high), 1e-9) * 0.1
    y_low, y_high = y_low - pad, y_high + pad
    right = WIDTH - RIGHT

    def at_x(x: float) -> float:
        return LEFT + (right - LEFT) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (y - y_low) / (y_high - y_low)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)} by {html.escape(x_label)}">'
    ]
    for tick in _log_ticks(y_low, y_high) if log_y else _ticks(y_low, y_high):
        text = _label(10**tick) if log_y else _label(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at_y(tick):.1f}" y2="{at_y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at_y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    crowded = len(names) * max(map(len, names), default=0) * 7 > right - LEFT  # then every other word stands lower
    for x, text in enumerate(names) if names else ((tick, _label(tick)) for tick in _ticks(x_low, x_high)):
        y = HEIGHT - BOTTOM + (37 if crowded and x % 2 else 18)
        parts.append(f'<text x="{at_x(x):.1f}" y="{y}" text-anchor="middle">{html.escape(str(text))}</text>')
    parts += [f'<path class="line mark" d="M{LEFT} {at_y(y):.1f}H{right}"/>' for y in level]
    middle, center = (LEFT + right) / 2, (TOP + HEIGHT - BOTTOM) / 2
    if not crowded:
        at = f'x="{middle}" y="{HEIGHT - 6}"'
        parts.append(f'<text class="soft" {at} text-anchor="middle">{html.escape(x_label)}</text>')
    turned = f'transform="translate(13 {center}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="soft" {turned}>{html.escape(y_label)}</text>')
    drawn, ends = _drawn(scaled, at_x, at_y, bool(names) and all(len(s.points) < 2 for s in scaled))
    ends += [(at_y(y), "soft", text) for y, text in level.items()]
    return "".join([*parts, *drawn, *_named(ends), "</svg>"])


def _drawn(
    series: Sequence[Series], at_x: Callable[[float], float], at_y: Callable[[float], float], apart: bool
) -> tuple[list[str], list[tuple[float, str, str]]]:
    """Lines and dots, and where each line ends: its height, its class and its name."""
    parts: list[str] = []
    ends: list[tuple[float, str, str]] = []
    for index, one in enumerate(series):
        if not one.points:
            continue
        color = index % SERIES
        means = {x: sum(vs) / len(vs) for x, vs in one.points.items()}
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in means.items())
        if not apart and len(means) > 1:
            parts.append(f'<polyline class="line s{color}" points="{path}"/>')
        few = len(means) <= 12
        for x, values in one.points.items():
            at = f'cx="{at_x(x):.1f}"'
            parts += [f'<circle class="dot s{color}" {at} cy="{at_y(v):.1f}" r="3.5"/>' for v in values if few]
            if apart:
                left, right, y = at_x(x) - 14, at_x(x) + 14, at_y(means[x])
                parts.append(f'<path class="line s{color}" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        if not apart:
            ends.append((at_y(list(means.values())[-1]), f"name s{color}", one.name))
    return parts, ends


def _named(ends: Sequence[tuple[float, str, str]]) -> list[str]:
    """Names at the right, pushed apart where they would overlap."""
    parts, before = [], -math.inf
    for y, kind, name in sorted(ends):
        before = max(y, before + 20)
        parts.append(f'<text class="{kind}" x="{WIDTH - RIGHT + 10}" y="{before + 4:.1f}">{html.escape(name)}</text>')
    return parts
