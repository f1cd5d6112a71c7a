"""What a leaderboard takes for the same value."""

import pytest

from recur.leaderboard.reading import _meaning


@pytest.mark.parametrize(
    "texts",
    [
        ("1e-3", "0.001"),
        ("true", "True"),
        ("'a b'", '"a b"', "a b"),
        ("[0.9,0.999]", "[0.90, 0.999]", "[9e-1, .999]"),
        ("[a,true]", "[a, True]"),
        ("[]", "[ ]"),
    ],
)
def test_one_value_is_one_however_it_is_spelled(texts):
    assert len(set(map(_meaning, texts))) == 1


def test_other_values_are_others():
    texts = ["1", "[1]", "[1,2]", "[2,1]", "[[1],2]", "['1',2]", "a", "[a]", "'a'b'", "", "[&a [1],*a]", "[2024-02-30]"]
    assert len(set(map(_meaning, texts))) == len(texts)
