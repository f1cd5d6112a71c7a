"""`UserError` in words, and where its key comes from."""

import pickle

import pytest

from recur.errors import ABSENT, UserError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("data.batch_size", 0, "must be at least 1"), "data.batch_size must be at least 1, got 0"),
        (UserError("seed", None, "must be a number", "seed=0"), "seed must be a number, got None: seed=0"),
        (UserError("a.ckpt", ABSENT, "is damaged", "use another"), "a.ckpt is damaged: use another"),
        (UserError("", rule="there is nothing to read"), "there is nothing to read"),
    ],
)
def test_message_is_key_rule_value_remedy(error: UserError, text: str) -> None:
    assert str(error) == text


def test_a_key_can_be_put_below_another() -> None:
    error = UserError("lr", -1, "must be above 0", "1e-3 is usual")
    assert str(error.below("optimizer")) == "optimizer.lr must be above 0, got -1: 1e-3 is usual"
    assert error.below("").key == "lr"
    assert UserError("", rule="is odd").below("model").key == "model"


def test_it_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(UserError("a", 1, "must be 2", "say 2")))
    assert (error.key, error.value, error.rule, error.remedy) == ("a", 1, "must be 2", "say 2")
    error = UserError("a.ckpt", rule="is damaged")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a.ckpt is damaged"
