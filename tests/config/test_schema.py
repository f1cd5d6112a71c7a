"""A signature is the schema."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

import recur
from recur.config.schema import check
from recur.errors import UserError


class Thing:
    def __init__(
        self,
        size: int,
        rate: float = 0.0,
        name: str | None = None,
        way: Literal["up", "down"] = "up",
        weights: Sequence[float] | str | None = None,
        more: Mapping[str, Any] | None = None,
        where: Path | None = None,
        flag: bool = False,
        part: Any = None,
    ) -> None: ...


TARGET = f"{__name__}.Thing"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__("types").ModuleType(__name__))
    monkeypatch.setattr(sys.modules[__name__], "Thing", Thing, raising=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 3},
        {"size": 3, "rate": 1, "name": None, "way": "down", "weights": [1.0], "more": {"a": 1}, "flag": True},
        {"size": 3, "weights": "balanced", "where": "a/b", "part": "anything"},
    ],
)
def test_what_fits_passes(settings):
    check({"thing": {"_target_": TARGET, "_partial_": True, **settings}}, "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "3"}, "thing.size must be a whole number, got '3'"),
        ({"size": 3.5}, "thing.size must be a whole number, got 3.5"),
        ({"size": True}, "thing.size must be a whole number, got True"),
        ({"size": None}, "thing.size must be a whole number, got None"),
        ({"rate": "high"}, "thing.rate must be a number, got 'high'"),
        ({"name": 4}, "thing.name must be a word or null, got 4"),
        ({"way": "left"}, "thing.way must be .*, got 'left'"),
        ({"weights": 3}, "thing.weights must be .*, got 3"),
        ({"more": "a"}, "thing.more must be .*, got 'a'"),
        ({"flag": 1}, "thing.flag must be true or false, got 1"),
        ({"size": {"a": 1}}, "thing.size must be a whole number, got {'a': 1}"),
        ({"name": ["a"]}, r"thing.name must be a word or null, got \['a'\]"),
        ({"where": {}}, "thing.where must be Path or null, got {}"),
        ({"size": 2**63}, "thing.size is too large a number: 9223372036854775808"),
        ({"sise": 1}, "thing.sise is no setting of .*Thing: did you mean size"),
    ],
)
def test_what_does_not_is_named_with_its_value(settings, message):
    with pytest.raises(ValueError, match=message):
        check({"thing": {"_target_": TARGET, **settings}}, "")


def test_a_target_that_is_nothing_is_named():
    with pytest.raises(ValueError, match=r"recur\.nn\.nothing"):
        check({"a": [{"_target_": "recur.nn.nothing"}]}, "")


@pytest.mark.parametrize("key", ["", "scheduler", "callbacks.best"])
def test_the_worst_value_of_a_known_metric_is_not_looked_for(key: str) -> None:
    from recur.config.schema import check_run

    words = ["scheduler=plateau", *(f"{key}.{part}".lstrip(".") for part in ("monitor=val/loss", "mode=min"))]
    check_run(recur.compose(words))
    with pytest.raises(UserError, match=rf"^{key}\.?mode must be min for val/loss, got 'max': add {key}\.?mode=min"):
        check_run(recur.compose(words[:2]))
