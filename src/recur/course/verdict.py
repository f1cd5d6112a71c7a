r"""Effects over seeds with a 95 % interval, and the verdict that follows.

A condition compares one number a seed: a value, a difference of two arms or a ratio of them (in the logarithm, so that
the interval is one of factors). Runs of one seed share their data and order of batches, so differences are taken seed
by seed. With n seeds the interval is mean +- t_{.975, n-1} s / sqrt(n).

A condition holds where the whole interval lies on the right side of its bound, fails where the whole interval lies on
the wrong side, and is open in between. A claim holds where all conditions hold, fails where none holds and at least one
fails, and depends otherwise.

Three seeds can agree by luck. On further seeds (`confirm`) a verdict stays only where all seeds together give it again
and the further ones alone have their mean on the side that each condition was found on; else it depends.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recur.course.claim import Condition
from recur.errors import UserError

HOLDS, FAILS, DEPENDS = "holds", "fails", "depends"
# Quantiles of Student's t at .975 for 1 to 30 degrees of freedom; beyond, `_quantile` expands them around the normal's.
_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_NORMAL = 1.959964  # the normal's quantile


@dataclass(frozen=True)
class Observation:
    """What one run, or one row of a measurement, showed.

    Attributes:
        arm: of the comparison.
        seed: by which observations are paired.
        x: place on the x axis, empty for none.
        measures: by name.
        curve: measures along the run, such as one mapping an epoch.
        reason: of a failure, in one line.
    """

    arm: str
    seed: int
    x: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    reason: str = ""


@dataclass(frozen=True)
class Effect:
    """A condition's estimate.

    Attributes:
        text: the condition in words.
        estimate: mean over seeds.
        low: lower end of the 95 % interval; minus infinity for one seed.
        high: its upper end.
        bound: what it is held against.
        direction: `at least` or `at most`.
        kind: `value`, `difference` or `ratio`.
        verdict: of this condition.
    """

    text: str
    estimate: float
    low: float
    high: float
    bound: float
    direction: str
    kind: str
    verdict: str


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval; infinitely wide for a single value and where one is not finite.

    Equal values give an interval of no width: the seed changes nothing that is measured.
    """
    mean = sum(values) / len(values)  # `fmean` refuses infinities of both signs
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return mean, -math.inf, math.inf
    mean = statistics.fmean(values)
    degrees = len(values) - 1
    half = _quantile(degrees) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _quantile(degrees: int) -> float:
    """Quantile of Student's t at .975; beyond the table by Cornish and Fisher's expansion, four places right."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z = _NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def effect(condition: Condition, observations: Iterable[Observation]) -> Effect:
    """Estimate one condition.

    Raises:
        UserError: the observations lack an arm, a place or a measure that it compares, or have several places where it
            names none.
    """
    table = {(o.arm, o.x, o.seed): o.measures.get(condition.measure) for o in observations}
    kind = "ratio" if condition.over else "difference" if condition.minus or condition.than_at else "value"
    other = condition.over or condition.minus or (condition.of if condition.than_at is not None else None)
    if kind == "difference" and condition.over is None and other is None:
        raise UserError(condition.text, rule="compares nothing")
    first = _series(table, condition, condition.of, condition.at)
    numbers = list(first.values())
    if other is not None:
        place = condition.than_at if condition.than_at is not None else condition.at
        second = _series(table, condition, other, place)
        seeds = [seed for seed in first if seed in second]
        if not seeds:
            raise UserError(condition.text, rule=f"compares {condition.of} and {other}, which share no seed")
        pairs = [(first[seed], second[seed]) for seed in seeds]
        if kind == "ratio":
            if any(not (a > 0 and b > 0) for a, b in pairs):
                raise UserError(condition.text, rule="is a ratio of numbers that are not positive")
            numbers = [math.log(a) - math.log(b) for a, b in pairs]  # a / b is 0 where b is infinite
        else:
            numbers = [a - b for a, b in pairs]
    mean, low, high = interval(numbers)
    if kind == "ratio":
        mean, low, high = (_exp(value) for value in (mean, low, high))
    bound = condition.at_least if condition.at_least is not None else condition.at_most
    assert bound is not None
    direction = "at least" if condition.at_least is not None else "at most"
    right = low >= bound if direction == "at least" else high <= bound
    wrong = high < bound if direction == "at least" else low > bound
    verdict = HOLDS if right else FAILS if wrong else DEPENDS
    return Effect(condition.text, mean, low, high, bound, direction, kind, verdict)


def judge(rule: Sequence[Condition], observations: Iterable[Observation]) -> tuple[str, list[Effect]]:
    """The verdict of a rule and the effects it rests on."""
    known = list(observations)
    effects = [effect(condition, known) for condition in rule]
    return overall([one.verdict for one in effects]), effects


def overall(verdicts: Sequence[str]) -> str:
    """The verdict of a rule by those of its conditions."""
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    return FAILS if HOLDS not in verdicts and FAILS in verdicts else DEPENDS


@dataclass(frozen=True)
class Confirmed:
    """A verdict held against further seeds.

    Attributes:
        verdict: what stays: that of the first seeds, or `depends`.
        effects: over all seeds.
        first: the verdict of the first seeds.
        means: of the further seeds alone, one a condition.
    """

    verdict: str
    effects: list[Effect]
    first: str
    means: list[float]


def confirm(rule: Sequence[Condition], first: Sequence[Observation], further: Sequence[Observation]) -> Confirmed:
    """Hold the verdict of the first seeds against further ones.

    Raises:
        UserError: as `effect`.
    """
    verdict, before = judge(rule, first)
    pooled, effects = judge(rule, [*first, *further])
    means = [effect(condition, further).estimate for condition in rule]
    same = pooled == verdict and all(_agrees(one, mean) for one, mean in zip(before, means, strict=True))
    return Confirmed(verdict if same else DEPENDS, effects, verdict, means)


def _agrees(one: Effect, mean: float) -> bool:
    """Whether a mean of further seeds lies on the side of the bound that the effect was found on."""
    if one.verdict == DEPENDS:
        return True
    right = mean >= one.bound if one.direction == "at least" else mean <= one.bound
    return right == (one.verdict == HOLDS)


def _series(
    table: Mapping[tuple[str, str, int], Any], condition: Condition, arm: str, at: str | None
) -> dict[int, float]:
    own = {
        (x, seed): value
        for (other, x, seed), value in table.items()
        if other == arm and value is not None and (at is None or x == at)
    }
    if not own:
        where = "" if at is None else f" at {at}"
        measured = dict.fromkeys(other for (other, _, _), value in table.items() if value is not None)
        known = f"it was measured of {', '.join(measured)}" if measured else ""
        rule = f"needs {condition.measure} of {arm}{where}, which nothing measured"
        raise UserError(condition.text, rule=rule, remedy=known)
    if len(places := dict.fromkeys(x for x, _ in own)) > 1:
        rule = f"must say at which place {arm} is meant"
        raise UserError(condition.text, rule=rule, remedy=f"it can be {', '.join(places)}")
    return {seed: value for (_, seed), value in own.items()}


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
