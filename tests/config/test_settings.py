"""Which settings may change when a run is resumed."""

import pytest

from recur.config.settings import changes, check_changes
from recur.errors import UserError

BEFORE = {
    "seed": 0,
    "data": {"path": "a", "batch_size": 8, "synthetic": {"train": 100}},
    "model": {"net": {"hidden_size": 8}},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.003},
    "trainer": {"max_epochs": 2, "accumulate_grad_batches": 1},
    "callbacks": {"ema": {"decay": None}, "early_stopping": {"patience": None}},
    "test": True,
}


def _changed(path: str, value: object) -> dict:
    def put(node: dict, keys: list[str]) -> dict:
        head, *rest = keys
        return {**node, head: put(node.get(head, {}), rest) if rest else value}

    return put(BEFORE, path.split("."))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer.max_epochs", 5),
        ("trainer.precision", "bf16-mixed"),
        ("callbacks.early_stopping.patience", 3),
        ("callbacks.samples", {"tokens": 3}),
        ("logger", {"csv": {}}),
        ("data.path", "b"),
        ("test", False),
    ],
)
def test_what_is_honoured_passes(path: str, value: object) -> None:
    check_changes(BEFORE, _changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 5),
        ("seed", False),
        ("optimizer.lr", 1e-9),
        ("optimizer", {"_target_": "torch.optim.SGD"}),
        ("model.net.hidden_size", 9),
        ("data.synthetic.train", 128),
        ("data.batch_size", 9),
        ("trainer.accumulate_grad_batches", 2),
        ("callbacks.ema.decay", 0.9),
        ("monitor", "val/loss"),
    ],
)
def test_what_is_not_is_refused_by_name(path: str, value: object) -> None:
    with pytest.raises(UserError, match="cannot change") as caught:
        check_changes(BEFORE, _changed(path, value))
    assert caught.value.key.startswith(path.partition(".")[0])


def test_changes_are_named_by_path() -> None:
    assert list(changes(BEFORE, BEFORE)) == []
    assert list(changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1.0, "d": 3}})) == [
        ("a.b", 1, 1.0),
        ("a.c", 2, ...),
        ("a.d", ..., 3),
    ]


@pytest.mark.parametrize(("group", "option"), [("data", "imdb"), ("optimizer", "sgd")])
def test_an_option_of_a_group_is_refused_without_all_its_settings(group: str, option: str) -> None:
    with pytest.raises(UserError) as caught:
        check_changes(BEFORE, {**BEFORE, group: option})
    assert str(caught.value) == (
        f"{group} was chosen when the run began and cannot change to '{option}': leave it out, or start another run "
        "with it"
    )
