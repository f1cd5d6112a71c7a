"""What a sweep varies, read from Hydra's syntax: `a=1,2`, `choice`, `range`, `interval`, `int()`, `tag(log, ...)`."""

import itertools
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


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
    """What a sweep sets once (`fixed`, override texts by key) and what it varies."""

    fixed: dict[str, str] = field(default_factory=dict)
    dimensions: list[Dimension] = field(default_factory=list)

    def grid(self) -> list[tuple[str, ...]]:
        """Every combination, the last dimension fastest.

        Raises:
            ValueError: an interval has no list of values.
        """
        for dimension in self.dimensions:
            if dimension.low is not None:
                raise ValueError(
                    f"a grid cannot list {dimension.key}={dimension.spec}: give its values, or search with "
                    "hydra/sweeper=random or hydra/sweeper=optuna"
                )
        rows = itertools.product(*[[f"{d.key}={text}" for text in d.texts] for d in self.dimensions])
        return [(*self.fixed.values(), *row) for row in rows]

    def sample(self, count: int, seed: int) -> list[tuple[str, ...]]:
        """`count` different settings at random; a list of seeds is crossed with each of them.

        The same `seed` draws the same settings; a list with fewer combinations than `count` is taken whole.
        """
        varied = [d for d in self.dimensions if d.key != "seed"]
        seeds = [f"seed={text}" for d in self.dimensions if d.key == "seed" for text in d.texts]
        if all(d.low is None for d in varied) and math.prod(len(d.texts) for d in varied) <= count:
            return self.grid()
        rng, drawn = random.Random(seed), dict[tuple[str, ...], None]()  # noqa: S311
        while len(drawn) < count:
            drawn[tuple(f"{d.key}={d.draw(rng)}" for d in varied)] = None
        return [(*self.fixed.values(), *row, *([s] if s else [])) for row in drawn for s in (seeds or [""])]

    def as_record(self) -> dict[str, Any]:
        """Plain values by which two spaces are compared."""
        varied = {d.key: sorted(d.texts) if d.low is None else "".join(d.spec.split()) for d in self.dimensions}
        return {"fixed": dict(self.fixed), "varied": varied}


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
    return ",".join(value) if isinstance(value, list) else str(value).removeprefix(f"{key}=")


def parse(params: Mapping[str, Any] | None, arguments: Iterable[str], config_loader: Any = None) -> Space:
    """Read the sweeper's `params` and, over them, what was typed.

    Raises:
        ValueError: a range or an interval without values, a seed that is an interval.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    texts = [f"{key}={value}" for key, value in (params or {}).items()]
    parser = OverridesParser.create(config_loader=config_loader)
    found: dict[str, str | Dimension] = {}
    for override in parser.parse_overrides([*texts, *arguments]):
        key = override.get_key_element()
        if key == "resume":
            continue
        found.pop(key, None)  # what is typed comes last
        if override.is_sweep_override():
            found[key] = _dimension(key, override)
        else:
            found[key] = str(override.input_line)
    return Space(
        {key: value for key, value in found.items() if isinstance(value, str)},
        [value for value in found.values() if isinstance(value, Dimension)],
    )


def _dimension(key: str, override: Any) -> Dimension:
    from hydra.core.override_parser.types import IntervalSweep

    value, spec = override.value(), str(override.input_line).partition("=")[2]
    if not isinstance(value, IntervalSweep):
        texts = tuple(dict.fromkeys(override.sweep_string_iterator()))
        if not texts:
            raise ValueError(f"{key}={spec} has no values: the end of a range is not part of it")
        return Dimension(key, spec, texts)
    if key == "seed":
        raise ValueError(f"seed={spec}: seeds are listed, as in seed=0,1,2")
    assert value.start is not None
    assert value.end is not None
    low, high = value.start, value.end
    log = "log" in value.tags
    integer = isinstance(low, int) and isinstance(high, int) and spec.replace(" ", "").find("int(") >= 0
    if not low < high:
        raise ValueError(f"{key}={spec} is empty: its first number must be below its second")
    if log and low <= 0:
        raise ValueError(f"{key}={spec}: a log interval needs numbers above 0")
    return Dimension(key, spec, (), low, high, integer, log)
