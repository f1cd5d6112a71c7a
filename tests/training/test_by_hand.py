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
from recur.tasks.schedulers import linear
from recur.tasks.sentiment import SentimentTask
from recur.training import by_hand
from recur.training.checkpointing import best_checkpoint
from recur.training.fit import train

pytestmark = [  # Lightning's own
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",
        ".*treespec",
        ".*smaller than the logging interval",
        "No ",
        "Be aware",
        "The dirpath has",
    )
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


@pytest.mark.parametrize("seen", ["opened", "resumed", "tested"])
def test_a_training_from_its_beginning_plans_its_own_steps(tmp_path: Path, seen: str) -> None:
    """Whatever run the task's weights are of; one that goes on counts the steps before."""
    large, small = (SentimentData(synthetic=SyntheticReviews(size, 20, 20), batch_size=10) for size in (200, 40))
    large.setup()
    small.setup()
    net, schedule = partial(Classifier, embedding_dim=4, hidden_size=4), partial(linear, warmup=0.1, floor=0.0)
    task = SentimentTask(net, optimizer=ADAM, scheduler=schedule, **large.model_arguments())
    best = trained(tmp_path, large, task, "val/loss", "min") / "checkpoints" / "best.ckpt"

    def fit(data: SentimentData, epochs: int, **settings: Any) -> int:
        keep = ModelCheckpoint(tmp_path / f"of {epochs}", monitor="val/loss", mode="min")
        trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[keep], **QUIET)
        train(data, task, trainer, test=False, **settings)
        assert task._plan is not None
        return task._plan.total

    if seen == "opened":
        own = {"net": net, "optimizer": ADAM, "scheduler": schedule, **large.model_arguments()}
        task = SentimentTask.load_from_checkpoint(best, weights_only=True, **own)
    elif seen == "resumed":
        assert fit(large, 4, checkpoint=best) == 4 * 20
    else:
        pl.Trainer(accelerator="cpu", **QUIET).test(
            task, datamodule=large, ckpt_path=best, weights_only=True, verbose=False
        )
    assert fit(small, 3) == 3 * 4


def small() -> tuple[SentimentData, dict[str, Any]]:
    """Data, and what a task of it is made with."""
    data = SentimentData(synthetic=SyntheticReviews(40, 20, 20), batch_size=10)
    data.setup()
    net = partial(Classifier, embedding_dim=4, hidden_size=4)
    return data, {"net": net, "optimizer": ADAM, **data.model_arguments()}


def test_a_trainer_trains_once(tmp_path: Path) -> None:
    """The second task got the first one's best weights and figures, without a step."""
    data, settings = small()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **QUIET)
    train(data, SentimentTask(**settings), trainer, test=False)
    with pytest.raises(UserError, match="trainer has trained before: build a new one"):
        train(data, SentimentTask(**settings), trainer, test=False)


class Passing(SentimentTask):
    """Passes its arguments on, as a class of somebody's own does."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)


class OwnNet(SentimentTask):
    """Makes its network by itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(partial(Classifier, embedding_dim=4, hidden_size=4), **settings)


class Keeping(SentimentTask):
    """Keeps what it was made with in Lightning's way."""

    def __init__(self, net: Any, **settings: Any) -> None:
        super().__init__(net, **settings)
        self.save_hyperparameters()


def test_a_checkpoint_knows_the_network_of_a_task_that_passes_it_on(tmp_path: Path) -> None:
    data, settings = small()
    net = settings.pop("net")
    assert Passing(net, **settings).given["net"] is net
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/loss")
    with pytest.raises(UserError, match=r"model\.net is no argument with which the task was made"):
        train(data, OwnNet(**settings), pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[best], **QUIET))


def test_what_could_not_be_read_back_is_refused_at_the_first_checkpoint(tmp_path: Path) -> None:
    """After all of the training no checkpoint could be opened."""
    data, settings = small()
    best = best_checkpoint("val/loss", "min", str(tmp_path))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=9, callbacks=[best], **QUIET)
    with pytest.raises(UserError, match=r"hyper_parameters of a checkpoint would hold an object of functools\.partial"):
        train(data, Keeping(**settings), trainer)
    assert trainer.current_epoch == 0 and not [*tmp_path.iterdir()]


def test_a_metric_that_a_task_does_not_log_is_refused_with_those_that_it_does(tmp_path: Path) -> None:
    data, settings = small()
    best = best_checkpoint("val/mean_recal", "max", str(tmp_path))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[best], **QUIET)
    with pytest.raises(
        UserError, match=r"monitor must be a metric that the task logs, got 'val/mean_recal': .*val/loss"
    ):
        train(data, SentimentTask(**settings), trainer)
    assert trainer.current_epoch == 0
