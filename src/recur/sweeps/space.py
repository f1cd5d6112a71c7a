"""What a sweep varies, read from Hydra's syntax: `a=1,2`, `choice`, `range`, `interval`, `int()`, `tag(log, ...)`."""

import itertools
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recur.errors import UserError

_ONE_SWEEP = "chooses what is swept, once for all jobs"
MOST_JOBS = 10_000  # of one sweep; each is composed and checked before the first one starts


@dataclass(frozen=True)
class Dimension:
    """One varied setting.

    Attributes:
        key: what is set, as typed: `optimizer.lr`, `model`, `+data.extra`.
        spec: its values as typed: `1,2` or `interval(1e-4, 1e-1)`.
        texts: every value as override text; empty for an interval.
        low: lower end of an interval, None for lists.
        high: its upper end, included.
        integer: only whole numbers.
        log: even in the logarithm.
    """

    key: str
    spec: str
    texts: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    integer: bool = False
    log: bool = False

    @property
    def size(self) -> float:
        """How many values there are; infinite for an interval of real numbers."""
        if self.low is None or self.high is None:
            return len(self.texts)
        return self.high - self.low + 1 if self.integer else math.inf

    def draw(self, rng: random.Random) -> str:
        """One value at random, as override text."""
        if self.low is None or self.high is None:
            return rng.choice(self.texts)
        low, high = self.low, self.high
        if self.integer and self.log:  # whole numbers at the ends get their full share
            value = math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return str(min(int(high), max(int(low), round(value))))
        if self.integer:
            return str(rng.randint(int(low), int(high)))
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else rng.uniform(low, high)
        return repr(float(f"{value:.6g}"))


@dataclass
class Space:
    """What a sweep sets once (`fixed`, override texts by key) and varies: dimensions, and cases of many overrides.

    What is set once is where every case begins: a case may set it otherwise.
    """

    fixed: dict[str, str] = field(default_factory=dict)
    dimensions: list[Dimension] = field(default_factory=list)
    cases: list[tuple[str, ...]] = field(default_factory=list)

    def grid(self) -> list[tuple[str, ...]]:
        """Every combination, the last dimension fastest.

        Raises:
            UserError: an interval has no list of values, there are too many combinations, or a setting would be lost
                since the cases set it too.
        """
        self._check_cases()
        for dimension in self.dimensions:
            if dimension.low is not None:
                raise UserError(
                    "",
                    rule=f"a grid cannot list {dimension.key}={dimension.spec}",
                    remedy="give its values, or search with hydra/sweeper=random or hydra/sweeper=optuna",
                )
        check_count(math.prod(len(dimension.texts) for dimension in self.dimensions))
        rows = itertools.product(*[[f"{d.key}={text}" for text in d.texts] for d in self.dimensions])
        return [(*self.fixed.values(), *case, *row) for case, row in itertools.product(self.cases or [()], rows)]

    def _check_cases(self) -> None:
        """Refuse what cases set and a dimension sets again, and what is set once and again by every case.

        Raises:
            UserError: names the first such setting.
        """
        sets = [{word.partition("=")[0].lstrip("+") for word in case} for case in self.cases]
        if any("sweep" in keys for keys in sets):
            raise UserError("hydra.sweeper.cases", rule=_ONE_SWEEP, remedy="take sweep=... out of them")
        varied = [d.key for d in self.dimensions if any(d.key.lstrip("+") in keys for keys in sets)]
        once = [key for key in self.fixed if sets and all(key.lstrip("+") in keys for keys in sets)]
        for key in (*varied, *once):
            rule = "is set by hydra.sweeper.cases and beside them"
            raise UserError(key.lstrip("+"), rule=rule, remedy="set it in one place")

    def sample(self, count: int, seed: int) -> list[tuple[str, ...]]:
        """`count` different settings at random; a list of seeds is crossed with each of them.

        The same `seed` draws the same settings; a list with fewer combinations than `count` is taken whole.
        """
        varied = [d for d in self.dimensions if _bare(d.key) != "seed"]
        seeds = [f"{d.key}={text}" for d in self.dimensions if _bare(d.key) == "seed" for text in d.texts]
        sizes = [d.size for d in varied]
        if all(d.low is None for d in varied) and math.prod(sizes) <= count:
            return self.grid()
        check_count(count * max(1, len(seeds)))
        if math.prod(sizes) < count:
            raise UserError(
                "hydra.sweeper.n_trials", count, f"is more than the {math.prod(sizes):.0f} settings that there are"
            )
        rng, drawn = random.Random(seed), dict[tuple[str, ...], None]()  # noqa: S311
        for _ in range(1000 * count):  # few settings left are drawn late; a narrow interval may have fewer numbers
            if len(drawn) == count:
                break
            drawn[tuple(f"{d.key}={d.draw(rng)}" for d in varied)] = None
        return [(*self.fixed.values(), *row, *([s] if s else [])) for row in drawn for s in (seeds or [""])]

    def as_record(self) -> dict[str, Any]:
        """Plain values by which two spaces are compared, and the order of the values that are listed."""
        varied = {d.key: sorted(d.texts) if d.low is None else "".join(d.spec.split()) for d in self.dimensions}
        cases = {"cases": sorted(" ".join(case) for case in self.cases)} if self.cases else {}
        order = {d.key: list(d.texts) for d in self.dimensions if d.texts}
        return {"fixed": dict(self.fixed), "varied": {**varied, **cases}, "order": order}

    def in_order(self, record: Mapping[str, Any]) -> "Space":
        """The same space with its dimensions and their values in the order of a record, on which draws depend."""
        varied, order = (part if isinstance(part := record.get(name), dict) else {} for name in ("varied", "order"))
        places = {key: place for place, key in enumerate(varied)}
        dimensions = sorted(self.dimensions, key=lambda d: places.get(d.key, len(places)))
        return replace(self, dimensions=[_reordered(d, order.get(d.key)) for d in dimensions])


def _reordered(dimension: Dimension, texts: Any) -> Dimension:
    """A dimension with the same values in this order; as it is where they are others."""
    same = isinstance(texts, list) and sorted(map(str, texts)) == sorted(dimension.texts)
    return replace(dimension, texts=tuple(map(str, texts))) if same else dimension


def check_count(count: float) -> None:
    """Refuse a sweep of too many jobs.

    Raises:
        UserError: it has too many jobs.
    """
    if count > MOST_JOBS:
        raise UserError(
            "a sweep",
            rule=f"can have at most {MOST_JOBS:,} jobs, this one would have {count:,.0f}",
            remedy="give fewer values, or search with hydra/sweeper=random or hydra/sweeper=optuna",
        )


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What one space record has that another lacks, in one line; empty when they are the same."""
    return "; ".join(
        f"{key}: then {_shown(then[part], key)}, now {_shown(now[part], key)}"
        for part in ("fixed", "varied")
        for key in dict.fromkeys([*then[part], *now[part]])
        if then[part].get(key) != now[part].get(key)
    )


def _shown(part: Mapping[str, Any], key: str) -> str:
    if key not in part:
        return "not set"
    value = part[key]
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).removeprefix(f"{key}=")


def parse(params: Mapping[str, Any] | None, arguments: Iterable[str], config_loader: Any = None) -> Space:
    """Read the sweeper's `params` and, over them, what was typed.

    Raises:
        UserError: a range or an interval without values, a value that comes twice, a seed that is an interval.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=config_loader)
    given = _by_key(parser, [f"{key}={value}" for key, value in (params or {}).items()])
    typed = _by_key(parser, arguments)
    names = {_bare(key) for key in typed}
    last = {key: value for key, value in given.items() if _bare(key) not in names} | typed
    return Space(
        {key: value for key, value in last.items() if isinstance(value, str)},
        [value for value in last.values() if isinstance(value, Dimension)],
    )


def has_several_values(word: str) -> bool:
    """Whether an override varies its setting; of one that cannot be read that is said when it is run."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(word).is_sweep_override())
    except (HydraException, RecursionError):
        return False


def _by_key(parser: Any, texts: Iterable[str]) -> dict[str, str | Dimension]:
    """Overrides by their keys as typed, the last one of each setting."""
    last: dict[str, str | Dimension] = {}
    for override in parser.parse_overrides(list(texts)):
        key = override.get_key_element()
        if _bare(key) == "resume":
            continue
        for same in [other for other in last if other.lstrip("+") == key.lstrip("+")]:  # `~a +a=1` is no repetition
            del last[same]
        last[key] = _dimension(key, override) if override.is_sweep_override() else str(override.input_line)
    return last


def _bare(key: str) -> str:
    """A key without `+`, `++` or `~`, with which it names the same setting."""
    return key.lstrip("+~")


def _dimension(key: str, override: Any) -> Dimension:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    value, spec = override.value(), str(override.input_line).partition("=")[2]
    if _bare(key) == "sweep":
        raise UserError(f"sweep={spec}", rule=_ONE_SWEEP, remedy="start one after the other")
    if isinstance(value, RangeSweep):
        _check_range(f"{key}={spec}", value)
    if not isinstance(value, IntervalSweep):
        texts = tuple(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
        check_count(len(texts))
        if not texts:
            raise UserError(f"{key}={spec}", rule="has no values", remedy="the end of a range is not part of it")
        seen = set[float | str]()
        for text in texts:
            if _value(text) in seen:
                raise UserError(f"{key}={spec}", rule=f"has the value {text} twice", remedy="give each value once")
            seen.add(_value(text))
        return Dimension(key, spec, texts)
    if _bare(key) == "seed":
        raise UserError(f"seed={spec}:", rule="seeds are listed", remedy="as in seed=0,1,2")
    assert value.start is not None
    assert value.end is not None
    low, high = value.start, value.end
    log = "log" in value.tags
    integer = isinstance(low, int) and isinstance(high, int) and spec.replace(" ", "").find("int(") >= 0
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise UserError(
            f"{key}={spec}", rule="is empty", remedy="its first number must be below its second, both finite"
        )
    if log and low <= 0:
        raise UserError(f"{key}={spec}", rule="needs numbers above 0", remedy="a log interval has no place for others")
    return Dimension(key, spec, (), low, high, integer, log)


def _check_range(text: str, value: Any) -> None:
    """Refuse a range before it is listed: that of a hundred million numbers takes minutes and all memory."""
    start, stop, step = float(value.start), float(value.stop), float(value.step)
    if not all(map(math.isfinite, (start, stop, step))) or step == 0:
        raise UserError(text, rule="is no range", remedy="its ends must be finite and its step not 0")
    check_count((stop - start) / step)


def _value(text: str) -> float | str:
    """What a text means, as far as two texts of the same meaning can be known: `0.1` and `1e-1`."""
    try:
        return float(text)
    except ValueError:
        return text
