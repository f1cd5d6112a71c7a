"""What a claim's file may say: every mistake is refused before anything is run.

First the file's own shape (`read`), then what its parts say of each other (`check`).
"""

import importlib
import inspect
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from recur.errors import UserError, nearest
from recur.runs.metrics import LANGUAGE, SENTIMENT, logged, recorded

TEXTS = ("title", "guide", "says", "question", "change", "measure")
_KEYS = (*TEXTS, "number", "minutes", "long", "needs", "sweep", "function", "quick", "rule", "chart", "because")
_SWEEP = ("base", "arms", "vary", "seeds", "probe", "failures")
_FUNCTION = ("name", "arguments", "seeds")
_CONDITION = ("text", "of", "measure", "minus", "over", "at", "than_at", "at_least", "at_most")


def read(path: Path) -> dict[str, Any]:
    """A claim's file as plain containers of the right shape.

    Raises:
        UserError: names the file, the key and what is allowed.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        said = getattr(error, "problem", None) or str(error)
        raise UserError(str(path), rule=f"is not YAML{where}", remedy=f"{said}; is a quote missing?") from None
    if not isinstance(content, dict):
        raise UserError(str(path), rule="must be keys with their values", remedy=f"known: {', '.join(_KEYS)}")
    _known(path, "", content, _KEYS)
    for key in (*TEXTS, "number", "minutes", "rule"):
        if not content.get(key):
            raise UserError(_key(path, key), content.get(key), "must be given")
    for key in TEXTS:
        if isinstance(content[key], (dict, list)):
            raise UserError(_key(path, key), content[key], "must be a text")
    content["minutes"] = _number(path, "minutes", content["minutes"])
    if not isinstance(content.get("long", False), bool):
        raise UserError(_key(path, "long"), content["long"], "must be true or false")
    if ("sweep" in content) == ("function" in content):
        raise UserError(path.name, rule="needs either `sweep` or `function`")
    kind = "sweep" if "sweep" in content else "function"
    for part in (kind, "quick"):
        if content.get(part) is not None or part == kind:
            content[part] = _part(path, part, content[part], _SWEEP if kind == "sweep" else _FUNCTION)
    needed = "arms" if kind == "sweep" else "name"
    if not content[kind].get(needed):
        raise UserError(_key(path, f"{kind}.{needed}"), content[kind].get(needed), "must be given")
    content["chart"] = content.get("chart") or {}
    if not isinstance(content["chart"], dict):
        raise UserError(_key(path, "chart"), content["chart"], "must be keys with their values")
    if not isinstance(content["rule"], list):
        raise UserError(_key(path, "rule"), content["rule"], "must be a list of conditions")
    for place, condition in enumerate(content["rule"], start=1):
        _condition(path, f"rule[{place}]", condition)
    return content


def _key(path: Path, key: str) -> str:
    return f"{path.name}: {key}"


def _known(path: Path, key: str, given: Mapping[Any, Any], known: Collection[str]) -> None:
    for word in given:
        if word not in known:
            rule = f"is no key of {key or 'a claim'}{nearest(str(word), known)}"
            raise UserError(_key(path, f"{key}.{word}".lstrip(".")), rule=rule, remedy=f"known: {', '.join(known)}")


def _number(path: Path, key: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(_key(path, key), value, "must be a number")
    return number


def _part(path: Path, part: str, given: Any, known: Collection[str]) -> dict[str, Any]:
    """`sweep`, `function` or `quick` without the keys that have no value."""
    if not isinstance(given, dict):
        raise UserError(_key(path, part), given, "must be keys with their values", f"known: {', '.join(known)}")
    _known(path, part, given, known)
    given = {key: value for key, value in given.items() if value is not None}
    _words(path, f"{part}.base", given.get("base", []))
    for key in ("arms", "vary", "arguments"):
        if not isinstance(given.get(key, {}), dict):
            raise UserError(_key(path, f"{part}.{key}"), given[key], "must be names with what belongs to each")
    for arm, words in given.get("arms", {}).items():
        _words(path, f"{part}.arms.{arm}", words or [])
    vary = given.get("vary", {})
    if len(vary) > 1:
        raise UserError(_key(path, f"{part}.vary"), list(vary), "must be one setting: the x axis")
    for key, values in vary.items():
        if not isinstance(values, list) or not values or any(isinstance(one, dict | list | None) for one in values):
            raise UserError(_key(path, f"{part}.vary.{key}"), values, "must be a list of values")
    seeds = given.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(_key(path, f"{part}.seeds"), seeds, "must be a list of different whole numbers from 0")
    if not isinstance(given.get("failures", False), bool):
        raise UserError(_key(path, f"{part}.failures"), given["failures"], "must be true or false")
    return given


def _words(path: Path, key: str, words: Any) -> None:
    """Overrides, as they are typed."""
    right = isinstance(words, list) and all(
        isinstance(word, str) and ("=" in word or word[:1] == "~") for word in words
    )
    if not right:
        raise UserError(_key(path, key), words, "must be a list of settings KEY=VALUE")
    for word in words:
        one_value(word, _key(path, key))


def one_value(word: str, where: str) -> None:
    """Refuse several values for a setting: a claim's runs differ by arm, axis and seed, and all others are alike.

    Raises:
        UserError: it has several.
    """
    if not set(",(").intersection(word):
        return
    from recur.sweeps.space import has_several_values

    if has_several_values(word):
        key = word.partition("=")[0]
        rule = f"gives {key} several values, and a claim's runs differ by arm, axis and seed alone"
        raise UserError(where, word, rule, "give one, or name the setting in `vary` of the claim's file")


def _condition(path: Path, key: str, given: Any) -> None:
    if not isinstance(given, dict):
        raise UserError(_key(path, key), given, "must be keys with their values", f"known: {', '.join(_CONDITION)}")
    _known(path, key, given, _CONDITION)
    for name in ("text", "of"):
        if given.get(name) in (None, ""):
            raise UserError(_key(path, f"{key}.{name}"), given.get(name), "must be given")
    if given.get("minus") is not None and given.get("over") is not None:
        raise UserError(_key(path, key), rule="has minus and over", remedy="it can have one of them")
    if ("at_least" in given) == ("at_most" in given):
        raise UserError(_key(path, key), given["text"], "needs either at_least or at_most")
    for name in ("at_least", "at_most"):
        if name in given:
            given[name] = _number(path, f"{key}.{name}", given[name])


def check(path: Path, claim: Any) -> None:
    """Refuse a rule of a `recur.course.claim.Claim` that speaks of what is not run, and parts that do not exist.

    What a function or a probe measures is known only afterwards; a rule that names something else fails then.

    Raises:
        UserError: names the file, the key and what is allowed.
    """
    if claim.function is not None:
        _check_function(path, claim.function)
        return
    sweep = claim.sweep
    assert sweep is not None
    _check_probe(path, sweep)
    for name, own in sweep.arms.items():
        if same := next((other for other in sweep.arms if other != name and set(sweep.arms[other]) == set(own)), None):
            raise UserError(_key(path, f"sweep.arms.{name}"), rule=f"is the same as {same}", remedy="leave one out")
    for place, condition in enumerate(claim.rule, start=1):
        named = {"of": condition.of, "minus": condition.minus, "over": condition.over}
        for key, arm in named.items():
            if arm is not None and arm not in sweep.arms:
                raise _unknown(_key(path, f"rule[{place}].{key}"), arm, "an arm", sweep.arms)
        for key, x in (("at", condition.at), ("than_at", condition.than_at)):
            if x is not None and x not in sweep.values:
                raise _unknown(
                    _key(path, f"rule[{place}].{key}"), x, f"a value of {sweep.vary or 'vary'}", sweep.values
                )
        if sweep.vary and condition.at is None:
            remedy = f"it can be {', '.join(sweep.values)}"
            raise UserError(_key(path, f"rule[{place}].at"), rule=f"must say at which {sweep.vary}", remedy=remedy)
        _check_measure(_key(path, f"rule[{place}].measure"), condition.measure, sweep)


def _check_measure(key: str, measure: str, sweep: Any) -> None:
    known = ["failed", *recorded()]
    for family in (SENTIMENT, LANGUAGE):
        known += logged(family, "val", "test")
    # What is like none of them may be a metric of a task of one's own: that is known after measuring.
    slip = "/" in measure and bool(nearest(measure, known))
    if measure not in known and (slip or not (sweep.probe or measure.startswith(("val/", "test/")))):
        raise _unknown(key, measure, "what a run measures", dict.fromkeys(known))


def _check_probe(path: Path, sweep: Any) -> None:
    if sweep.probe:
        _look_up(_key(path, "sweep.probe"), "probes", sweep.probe, "a probe")


def _check_function(path: Path, function: Any) -> None:
    key = _key(path, "function.name")
    module, _, name = function.name.rpartition(".")
    modules = ("costs", "formulas", "nets")
    if module not in modules:
        raise UserError(key, function.name, "must be MODULE.FUNCTION", f"the modules are {', '.join(modules)}")
    called = _look_up(key, module, name, f"a function of {module}")
    try:
        inspect.signature(called).bind(**{"seed": 0, **function.arguments})
    except TypeError as error:
        wanted = ", ".join(one for one in inspect.signature(called).parameters if one != "seed")
        raise UserError(
            _key(path, "function.arguments"), rule=f"do not suit {function.name} ({error})", remedy=f"it takes {wanted}"
        ) from None


def _look_up(key: str, module: str, name: str, kind: str) -> Any:
    """A function of one of this package's modules."""
    functions = inspect.getmembers(importlib.import_module(f"recur.course.{module}"), inspect.isfunction)
    own = {n: f for n, f in functions if f.__module__ == f"recur.course.{module}" and not n.startswith("_")}
    if name not in own:
        raise _unknown(key, name, kind, own)
    return own[name]


def _unknown(key: str, value: str, kind: str, known: Collection[str]) -> UserError:
    remedy = f"{nearest(value, known).removeprefix(': ')} known: {', '.join(known) or 'none'}"
    return UserError(key, value, f"must be {kind}", remedy.strip())
