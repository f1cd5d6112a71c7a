"""A data module, a task and a trainer built without Hydra: trained, saved, opened, used."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import recur
from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData
from recur.data.synthetic import SyntheticReviews
from recur.errors import UserError
from recur.nn.classifier import Classifier
from recur.nn.language_model import LanguageModel
from recur.runs.run import load_checkpoint
from recur.tasks.language_modeling import LanguageModelingTask
from recur.tasks.sentiment import SentimentTask
from recur.training import by_hand
from recur.training.fit import train

pytestmark = [  # Lightning's own
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (".*does not have many workers", ".*treespec", ".*smaller than the logging interval", "No ")
]
ADAM = partial(torch.optim.Adam, lr=0.01)


QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def trained(place: Path, data: Any, task: Any, monitor: str, mode: str) -> Path:
    best = ModelCheckpoint(place / "checkpoints", filename="best", monitor=monitor, mode=mode)
    train(data, task, pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[best], default_root_dir=place, **QUIET))
    return place


def test_a_classifier_built_by_hand_is_opened_by_its_folder(tmp_path: Path) -> None:
    data = SentimentData(synthetic=SyntheticReviews(300, 60, 60, gap=0, noise=0.0), batch_size=20, keep="tail")
    data.setup()
    net = partial(Classifier, embedding_dim=16, hidden_size=16, cell="gru")
    task = SentimentTask(net, optimizer=ADAM, label_smoothing=0.1, **data.model_arguments())
    run = recur.load(trained(tmp_path / "mine", data, task, "val/accuracy", "max"))
    assert run.config["name"] == "mine" and run.config["data"]["keep"] == "tail"
    state, given = run.task.state_dict(), task.state_dict()
    assert all(torch.equal(state[name], given[name]) for name in given)
    assert run.task.label_smoothing == 0.1 and run.task.net.recurrent.cell == "gru"
    assert run.predict(["this film is great"])[0].label in ("negative", "positive")
    assert run.evaluate(split="test")["test"]["texts"] == 60  # the corpus is made again from its settings
    assert "gru" in run._repr_html_()


def test_figures_are_those_of_the_best_weights_beside_an_average_of_lightnings_own(tmp_path: Path) -> None:
    """It would swap its last average in for the validation, where the best checkpoint is an earlier one."""
    data = SentimentData(synthetic=SyntheticReviews(200, 40, 40), batch_size=20)
    data.setup()
    net = partial(Classifier, embedding_dim=4, hidden_size=4)
    task = SentimentTask(net, optimizer=ADAM, **data.model_arguments())
    first = ModelCheckpoint(tmp_path, filename="best", monitor="train/epoch_loss", mode="max")
    callbacks = [first, EMAWeightAveraging(decay=0.5)]
    result = train(data, task, pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=callbacks, **QUIET), test=False)
    best = load_checkpoint(tmp_path / "best.ckpt")
    assert best["epoch"] == 0
    assert torch.equal(task.net.head.weight, best["state_dict"]["net.head.weight"])
    task.load_state_dict(best["state_dict"])
    (again,) = pl.Trainer(accelerator="cpu", **QUIET).validate(task, datamodule=data, verbose=False)
    assert result.results["val"]["loss"] == pytest.approx(again["val/loss"], rel=1e-6)


def test_a_language_model_built_by_hand_is_opened_by_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("the cat sat on the mat\n" * 200)
    data = LanguageData(train=str(tmp_path / "book.txt"), batch_size=4, eval_batch_size=2, bptt=10)
    data.setup()
    net = partial(LanguageModel, embedding_dim=16, hidden_size=16, tie_weights=True)
    task = LanguageModelingTask(net, optimizer=ADAM, **data.model_arguments())
    run = recur.load(trained(tmp_path / "mine", data, task, "val/loss", "min") / "checkpoints" / "best.ckpt")
    assert run.task.net.decoder.weight is run.task.net.embedding.weight
    assert run.generate("the", tokens=3, seed=0)[0].startswith("the")
    assert run.evaluate(split="val")["val"]["perplexity"] > 1


def test_what_has_no_name_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    data = SentimentData(synthetic=SyntheticReviews(100, 30, 30), batch_size=20)
    data.setup()
    task = SentimentTask(
        lambda **given: Classifier(embedding_dim=4, hidden_size=4, **given), optimizer=ADAM, **data.model_arguments()
    )
    with pytest.raises(UserError, match=r"model\.net must have a name under which it can be imported again"):
        trained(tmp_path / "mine", data, task, "val/accuracy", "max")
    assert not (tmp_path / "mine").exists()
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, enable_checkpointing=False, **QUIET)
    assert train(data, task, trainer, test=False).results["val"]["loss"] > 0  # where nothing is saved, nothing is named


def test_what_is_written_builds_the_same() -> None:
    from recur.runs.build import build

    corpus = SyntheticReviews(30, 10, 10, gap=1, noise=0.2, seed=5)
    assert vars(build(by_hand.written(corpus, "data.synthetic"))) == vars(corpus)
    optimizer = build(by_hand.written(partial(torch.optim.SGD, lr=0.5, momentum=0.9), "optimizer"))
    groups = optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (groups[0]["lr"], groups[0]["momentum"]) == (0.5, 0.9)
    data = SentimentData("somewhere", batch_size=3, class_names={0: "bad", 4: "good"})
    assert by_hand.written(data, "data") == {
        "_target_": "recur.data.sentiment.SentimentData",
        "path": "somewhere",
        "batch_size": 3,
        "class_names": {0: "bad", 4: "good"},
    }
