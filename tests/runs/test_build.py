"""Building what a config names, and whose mistake a failure is."""

import pytest
import torch

from recur.errors import UserError
from recur.runs.build import Part, build, resolve

ADAM = {"_target_": "torch.optim.Adam", "_partial_": True}


def test_nodes_are_built_from_the_inside_out() -> None:
    node = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Linear", "_args_": [2, 3]}]}
    built = build({"a": [node, 3], "b": None})
    assert isinstance(built["a"][0][0], torch.nn.Linear) and built["a"][1] == 3 and built["b"] is None


def test_a_part_takes_its_other_arguments_later() -> None:
    part = build({**ADAM, "lr": 0.5}, "optimizer")
    assert isinstance(part, Part)
    assert part([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    "target",
    ["recur.nn.nothing", "nothing.at.all", "torch.pi", "", "..", "recur", "torch.nn.Linear.weight.x", 3],
)
def test_a_name_that_cannot_be_called_is_the_user_s_mistake(target) -> None:
    with pytest.raises(UserError, match="must name a class or function") as caught:
        resolve(target, "model")
    assert caught.value.key == "model._target_"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({**ADAM, "lr": -1.0}, "Invalid learning rate"),
        ({**ADAM, "lrr": 1.0}, "unexpected keyword argument 'lrr'"),
        ({"_target_": "recur.nn.recurrent.Recurrent", "input_size": 2, "hidden_size": 0}, "at least 1"),
        ({"_target_": "lightning.pytorch.Trainer", "accelerator": "abacus"}, "abacus"),
    ],
)
def test_what_a_class_of_a_library_or_of_nn_refuses_is_too(node, said) -> None:
    part = build({**node, "_partial_": True}, "group.name")
    with pytest.raises(UserError, match=said) as caught:
        part(*([[torch.nn.Parameter(torch.zeros(1))]] if "optim" in node["_target_"] else []))
    assert caught.value.key in ("group.name", "group.name.hidden_size")


def broken(*args: object) -> None:
    list(zip([1], [1, 2], strict=True))


def test_what_fails_in_our_own_classes_is_ours(monkeypatch) -> None:
    monkeypatch.setattr("recur.tasks.schedulers.cosine", broken)
    broken.__module__ = "recur.tasks.schedulers"
    with pytest.raises(ValueError, match="zip") as caught:
        build({"_target_": "recur.tasks.schedulers.cosine"}, "scheduler")
    assert not isinstance(caught.value, UserError)


def test_a_user_error_of_ours_gets_its_place() -> None:
    def refuse() -> None:
        raise UserError("size", 0, "must be at least 1")

    with pytest.raises(UserError) as caught:
        Part(refuse, "callbacks.mine")()
    assert caught.value.key == "callbacks.mine.size"
