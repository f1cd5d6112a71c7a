"""What a checkpoint's description may claim."""

from typing import Any

import pytest

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
