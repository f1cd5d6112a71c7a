"""What a checkpoint's description may claim."""

from typing import Any

import pytest
import torch

from recur.runs import limits


def _model(target: str, **net: Any) -> dict[str, Any]:
    return {"_target_": "recur.tasks.sentiment.SentimentTask", "net": {"_target_": target, **net}}


def test_a_layer_of_ours_has_weights_of_its_own() -> None:
    ours = "recur.nn.classifier.Classifier"
    limits.check_counts(_model(ours, num_layers=7), 7)
    for net in ({"num_layers": 8}, {"options": {"num_layers": 8}}):
        with pytest.raises(ValueError, match="num_layers is 8, and it has 7 weights"):
            limits.check_counts(_model(ours, **net), 7)
    with pytest.raises(ValueError, match="rounds is 8, and it has 7 weights"):
        limits.check_counts(_model(ours, cell="mogrifier", cell_options={"rounds": 8}), 7)


def test_layers_of_somebody_elses_network_may_share_their_weights() -> None:
    limits.check_counts(_model("outsiders.model.Shared", num_layers=8), 7)
    limits.check_counts(_model("recurrent.Shared", num_layers=8), 7)
    inner = {"_target_": "recur.nn.Recurrent", "num_layers": 8}
    with pytest.raises(ValueError, match="num_layers is 8"):
        limits.check_counts(_model("outsiders.model.Shared", num_layers=8, recurrent=inner), 7)


def test_an_optimizer_keeps_as_many_numbers_as_a_weight_has_or_a_row_or_column_of_it() -> None:
    """Adafactor keeps a row and a column, and a run with it could not be resumed."""
    layer = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adafactor(layer.parameters())
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert {tuple(state["state"][0][name].shape) for name in ("row_var", "col_var")} == {(4, 1), (1, 3)}
    content = {"loops": {"fit_loop": {}}, "callbacks": {}, "lr_schedulers": [], "global_step": 1, "epoch": 0}
    content |= {"optimizer_states": [state], "state_dict": layer.state_dict()}
    limits.check_training_state(content)
    for shape in ((4, 2), (1, 4), (3,), (4, 3, 1)):
        state["state"][0]["row_var"] = torch.zeros(shape)
        with pytest.raises(ValueError, match="other shapes than its weights"):
            limits.check_training_state(content)
