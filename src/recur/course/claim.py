"""A claim of the course: what it says, what is compared, and the rule by which it holds."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recur.course import checks
from recur.errors import UserError, nearest


@dataclass(frozen=True)
class Condition:
    """One comparison of a rule: a difference, a ratio or a value, and a bound for it.

    Attributes:
        text: what it means, in words.
        of: the arm.
        minus: the arm that is subtracted, seed by seed.
        over: the arm that it is divided by, seed by seed.
        at: the place on the x axis, None for the only one.
        than_at: the same of `minus` or `over`; without either, of `of` itself.
        measure: what is compared.
        at_least: bound from below.
        at_most: bound from above.
    """

    text: str
    of: str
    measure: str
    minus: str | None = None
    over: str | None = None
    at: str | None = None
    than_at: str | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Sweep:
    """Runs to compare: every arm with every value of the varied setting and every seed.

    Attributes:
        base: overrides of all runs.
        arms: name to the overrides that belong together.
        vary: the setting on the x axis, empty for none.
        values: its values.
        seeds: of the runs.
        probe: name of a function of `recur.course.probes` that measures more on each finished run.
        failures: whether a run that ends by a loss or gradient that is not finite is an observation (`failed` is 1) or
            an error; any other failure is an error.
    """

    base: tuple[str, ...]
    arms: Mapping[str, tuple[str, ...]]
    vary: str = ""
    values: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    probe: str = ""
    failures: bool = False


@dataclass(frozen=True)
class Function:
    """A measurement without training: called once a seed, it gives rows with `arm`, perhaps `x`, and measures.

    Attributes:
        name: `module.function` in this package.
        arguments: of the function, besides `seed`.
        seeds: of the calls.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Claim:
    """A claim, at its full or at its quick budget.

    Attributes:
        name: of its file.
        number: in the list of the course.
        title: the claim in one line.
        guide: the guide that says it.
        says: the guide's sentence in our words.
        question: what is asked.
        because: what a reader should know to understand the outcome.
        change: what a student could change to see the verdict turn.
        measure: what the rule compares where a condition names nothing else.
        rule: the conditions, all of which must hold.
        sweep: what is run, or None.
        function: what is called, or None.
        chart: settings of the chart.
        minutes: what it may cost on two cores.
        long: whether it runs only by name.
        needs: what must be typed besides, such as `data.path=FOLDER`.
        quick: whether this is the quick budget, whose figures are not to be quoted.
    """

    name: str
    number: str
    title: str
    guide: str
    says: str
    question: str
    change: str
    measure: str
    rule: tuple[Condition, ...]
    sweep: Sweep | None
    function: Function | None
    chart: Mapping[str, Any]
    minutes: float
    because: str = ""
    long: bool = False
    needs: str = ""
    quick: bool = False

    @property
    def key(self) -> str:
        """Hash of what is run: another key is another experiment."""
        parts = [repr(self.sweep), repr(self.function), self.quick]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=4).hexdigest()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the experiment."""
        part = self.sweep or self.function
        assert part is not None
        return part.seeds

    def further(self, count: int) -> "Claim":
        """The same experiment on `count` seeds that follow its own."""
        seeds = tuple(range(max(self.seeds) + 1, max(self.seeds) + 1 + count))
        if self.sweep is not None:
            return replace(self, sweep=replace(self.sweep, seeds=seeds))
        assert self.function is not None
        return replace(self, function=replace(self.function, seeds=seeds))


_BOUNDS = ("at_least", "at_most")
_PLACES = ("data.path", "data.cache_dir")  # where data lies does not change what is measured


def is_place(word: str) -> bool:
    """Whether an override only says where data lies."""
    return word.partition("=")[0] in _PLACES


def _setting(word: str) -> str:
    """The key of an override, without the signs that add one."""
    return word.partition("=")[0].lstrip("+~")


def changed(claim: Claim, words: Sequence[str]) -> Claim:
    """The claim with settings that were typed for all its runs: another experiment, unless they are only places.

    Raises:
        UserError: it is a measurement without runs, a setting has several values, or the claim's file sets the same run
            by run, which would win unseen.
    """
    for word in words:
        checks.one_value(word, "the command")
    changes = tuple(word for word in words if not is_place(word))
    if not changes:
        return claim
    if claim.sweep is None:
        raise UserError(changes[0], rule=f"is for runs, and {claim.name} has none")
    own = {_setting(word) for arm in claim.sweep.arms.values() for word in arm} | {claim.sweep.vary, "seed"}
    if word := next((word for word in changes if _setting(word) in own), ""):
        rule = f"is set by the arms, the axis or the seeds of {claim.name}"
        raise UserError(word, rule=rule, remedy=f"change it in conf/claims/{claim.name}.yaml")
    needs = " ".join([claim.needs, *changes]).strip()
    return replace(claim, sweep=replace(claim.sweep, base=(*claim.sweep.base, *changes)), needs=needs)


def names(folder: Path) -> list[str]:
    """The claims there are."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(folder: Path, name: str, *, quick: bool = False) -> Claim:
    """Read one claim.

    Raises:
        UserError: there is no such claim, or its file has a mistake.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = names(folder)
        hint = nearest(name, known).removeprefix(": ")
        raise UserError("", rule=f"there is no claim {name!r}", remedy=f"{hint} known: {', '.join(known)}".strip())
    content = checks.read(path)
    part = dict(content["sweep"] if "sweep" in content else content["function"])
    if quick:
        smaller = dict(content.get("quick") or {})
        part["base"] = [*part.get("base", []), *smaller.pop("base", [])]
        part["arguments"] = {**part.get("arguments", {}), **smaller.pop("arguments", {})}
        part.update(smaller)
    sweep = _sweep(part) if "sweep" in content else None
    function = None if sweep else _function(part)
    claim = Claim(
        name=name,
        rule=tuple(_condition(entry, content["measure"]) for entry in content["rule"]),
        sweep=sweep,
        function=function,
        chart=content.get("chart", {}),
        number=str(content["number"]),
        minutes=content["minutes"],
        because=" ".join(str(content.get("because", "")).split()),
        long=content.get("long", False),
        needs=str(content.get("needs", "")),
        quick=quick,
        **{key: " ".join(str(content[key]).split()) for key in checks.TEXTS},
    )
    checks.check(path, claim)
    return claim


def _sweep(part: Mapping[str, Any]) -> Sweep:
    vary, values = next(iter((part.get("vary") or {}).items()), ("", []))
    return Sweep(
        base=tuple(part.get("base", ())),
        arms={str(arm): tuple(words or ()) for arm, words in part["arms"].items()},
        vary=str(vary),
        values=tuple(str(value) for value in values),
        seeds=tuple(part.get("seeds", (0, 1, 2))),
        probe=str(part.get("probe", "")),
        failures=part.get("failures", False),
    )


def _function(part: Mapping[str, Any]) -> Function:
    return Function(str(part["name"]), dict(part.get("arguments") or {}), tuple(part.get("seeds", (0, 1, 2))))


def _condition(given: Mapping[str, Any], measure: str) -> Condition:
    texts = {key: str(value) for key, value in given.items() if key not in _BOUNDS and value is not None}
    return Condition(**{"measure": measure, **texts, **{key: given[key] for key in _BOUNDS if key in given}})
