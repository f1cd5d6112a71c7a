"""Values of a config against annotations, and annotations in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Interval, Lt, MinLen
from pydantic import AllowInfNan

from recur.config.signatures import check_value, in_words
from recur.errors import UserError

COUNT = Annotated[int, Ge(1)]
RATE = Annotated[float, Ge(0), Lt(1)]
FINITE = Annotated[float, Gt(0), AllowInfNan(False)] | None


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (float, 1),
        (float, math.inf),
        (COUNT, 1),
        (RATE, 0),
        (FINITE, None),
        (Literal["up", "down"], "up"),
        (Sequence[float] | str | None, [1, 2.5]),
        (Mapping[str, Any] | None, {"a": 1}),
        (dict[Any, Any], {0: "bad"}),
        (Path | None, "a/b"),
        (tuple[float, float], [0.9, 0.99]),
        (Annotated[list[int], MinLen(1)], [1]),
        (torch.Tensor | None, None),
        (Any, {"anything": []}),
        ("NoSuchName", 3),
    ],
)
def test_what_fits_passes(annotation: Any, value: Any) -> None:
    check_value("key", value, annotation)


@pytest.mark.parametrize(
    ("annotation", "value", "rule"),
    [
        (COUNT, 0, "a whole number of at least 1"),
        (COUNT, True, "a whole number of at least 1"),
        (COUNT, "1", "a whole number of at least 1"),
        (RATE, 1, "a number of at least 0 and below 1"),
        (RATE, math.nan, "a number of at least 0 and below 1"),
        (FINITE, math.inf, "a number above 0 and that is finite or null"),
        (Annotated[int, Interval(ge=2, le=4)], 5, "a whole number of at least 2 and at most 4"),
        (Literal["up", "down"], "left", "up or down"),
        (tuple[float, float], [0.9], "a list of 2 values"),
        (tuple[float, float], ["a", "b"], "a list of 2 values"),
        (Annotated[list[int], MinLen(1)], [], "a list of whole numbers with at least 1 items"),
        (Mapping[str, Any] | None, "a", "a mapping or null"),
        (Sequence[str] | Mapping[Any, str] | None, [1, 2], "a list of words or a mapping to words or null"),
        (Callable[..., Any], 3, "Callable"),
        (bool, 1, "true or false"),
    ],
)
def test_what_does_not_is_refused_with_the_rule(annotation: Any, value: Any, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        check_value("key", value, annotation)
    assert caught.value.rule == f"must be {rule}"
    assert in_words(annotation) == rule


@pytest.mark.parametrize("value", [2**63, -(2**64), "a\0b"])
def test_what_no_library_can_take_is_refused(value: Any) -> None:
    with pytest.raises(UserError):
        check_value("key", value, Any)
