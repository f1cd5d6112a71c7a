"""What the callbacks keep, print and end."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from recur.inference.language import Sampling, generate
from recur.tasks.base import Stepping
from recur.training.callbacks import (
    NonMonotonicAveraging,
    Progress,
    Samples,
    Throughput,
    early_stopping,
    epoch_line,
    weight_ema,
)
from recur.training.checkpointing import Files, best_checkpoint, bounds
from recur.training.failures import leave_with_launcher
from support.language_models import text_data

NAN = float("nan")
METRICS = {
    "train/epoch_loss": 0.5,
    "train/epoch_accuracy": 0.75,
    "val/loss": 0.4,
    "val/accuracy": 0.8,
    "train/tokens_per_second": 12345.6,
}


def test_an_epoch_without_a_validation_shows_none() -> None:
    line = epoch_line(3, 61.0, METRICS, validated=False)
    assert line == "epoch   4 | 1m 01s | train loss 0.5000 accuracy 75.00 % | 12,346 tokens/s"
    assert "| val loss 0.4000 accuracy 80.00 % |" in epoch_line(3, 61.0, METRICS, validated=True)
    assert "| 2m 00s |" in epoch_line(3, 119.6, METRICS, validated=False)


class _Scores(pl.LightningModule):
    """Validations with given scores and losses."""

    def __init__(self, scores: list[tuple[float, float]]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.scores = scores

    def training_step(self, batch, number):
        return self.weight.sum()

    def validation_step(self, batch, number):
        accuracy, loss = self.scores[self.current_epoch]
        self.log_dict({"val/accuracy": accuracy, "val/loss": loss})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class _Kept(pl.Callback):
    """Marks checkpoints as ours, so that they can be read."""

    def on_save_checkpoint(self, trainer, task, checkpoint):
        checkpoint["recur"] = {"format": 2}


def _trainer(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """A silent trainer that writes its checkpoints as a run does."""
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, _Kept()],
        plugins=[Files()],
        **settings,
    )


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([(1.0, 0.5), (1.0, 0.3), (1.0, 0.4)], 1),
        ([(0.9, 0.1), (1.0, 0.3), (0.8, 0.0)], 1),
        ([(1.0, 0.5), (1.0, 0.5), (1.0, 0.6)], 0),
    ],
    ids=["lower loss", "higher score", "the same"],
)
def test_a_tie_keeps_the_checkpoint_of_lower_loss(tmp_path: Path, scores, kept: int) -> None:
    best = best_checkpoint("val/accuracy", "max", str(tmp_path))

    trainer = _trainer(best, max_epochs=3)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(_Scores(scores), DataLoader(torch.ones(1, 1)), DataLoader(torch.ones(1, 1)))
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert content["epoch"] == kept
    state = next(state for key, state in content["callbacks"].items() if "Checkpoint" in key)
    assert state["best_loss"] == pytest.approx(scores[kept][1])


@pytest.mark.filterwarnings("ignore")
def test_a_validation_after_every_batch_is_one_of_those_watched(tmp_path: Path) -> None:
    """The whole number 1 is no whole epoch."""

    class Validated(_Scores):
        def validation_step(self, batch, number):
            self.log("val/loss", self.scores[self.global_step - 1][1])

    trainer = _trainer(best_checkpoint("val/loss", "min", str(tmp_path)), max_epochs=1, val_check_interval=1)
    scores = [(0.0, 3.0), (0.0, 1.0), (0.0, 2.0)]
    trainer.fit(Validated(scores), DataLoader(torch.ones(3, 1)), DataLoader(torch.ones(1, 1)))
    assert trainer.checkpoint_callback.best_model_score == 1
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}])
def test_what_is_measured_in_training_is_watched_at_the_end_of_each_epoch(tmp_path: Path, settings) -> None:
    """Not at a validation, which has no figure of the present epoch."""
    losses = [3.0, 1.0, 2.0, 4.0, 0.0]

    class Trained(_Scores):
        def on_train_epoch_end(self):
            self.log("train/epoch_loss", losses[self.current_epoch])

    stopping = early_stopping("train/epoch_loss", "min", 2)
    best = best_checkpoint("train/epoch_loss", "min", str(tmp_path))
    trainer = _trainer(best, stopping, max_epochs=5, **settings)
    trainer.fit(Trained([(0.0, 0.0)] * 5), DataLoader(torch.ones(2, 1)), DataLoader(torch.ones(1, 1)))
    assert trainer.current_epoch == 4
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert content["epoch"] == 1
    assert trainer.checkpoint_callback.best_model_score == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("figures", "epochs", "kept"),
    [([0.5, NAN, 0.9, NAN, 0.8, 1.0], 5, 2), ([NAN] * 6, 2, 0), ([NAN, 0.1, 0.2, 0.3, 0.4, 0.5], 6, 5)],
    ids=["some", "all", "the first"],
)
def test_a_figure_that_is_nan_counts_towards_patience(tmp_path: Path, figures, epochs: int, kept: int) -> None:
    best, stopping = best_checkpoint("val/accuracy", "max", str(tmp_path)), early_stopping("val/accuracy", "max", 2)
    trainer = _trainer(best, stopping, max_epochs=6)
    scores = [(figure, 0.5) for figure in figures]
    trainer.fit(_Scores(scores), DataLoader(torch.ones(1, 1)), DataLoader(torch.ones(1, 1)))
    assert trainer.current_epoch == epochs
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == kept


def test_a_changed_patience_is_not_that_of_the_checkpoint() -> None:
    former, present = early_stopping("val/loss", "min", 2), early_stopping("val/loss", "min", 5)
    former.wait_count = 1
    present.load_state_dict(former.state_dict())
    assert (present.patience, present.wait_count) == (5, 1)
    assert present.state_key == EarlyStopping("val/loss").state_key  # of earlier versions


def test_training_goes_on_without_a_reader(monkeypatch) -> None:
    """Of `recur.train ... | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        for epoch in range(2):
            progress = Progress()
            progress._epoch = (epoch, 1.0)
            progress._print_epoch(SimpleNamespace(is_global_zero=True, callback_metrics=METRICS))


def test_tokens_are_those_of_all_ranks() -> None:
    """A run that goes on with another number of them counts on."""
    speed, trainer = Throughput(), SimpleNamespace(world_size=1, global_step=1, log_every_n_steps=50)
    batch = SimpleNamespace(text=SimpleNamespace(data=torch.zeros(5)))
    speed.on_train_batch_end(trainer, None, None, batch, 0)
    trainer.world_size = 3
    speed.on_train_batch_end(trainer, None, None, batch, 1)
    assert speed.tokens == 5 + 15
    for state, tokens in (
        (speed.state_dict(), 20),
        ({"tokens": 20, "seconds": 1.0, "flop": 4, "wall_seconds": 2.0}, 60),
    ):
        again = Throughput()  # earlier versions kept what one rank had done
        again.load_state_dict(state)
        again.on_fit_start(trainer, None)
        assert again.tokens == tokens


def test_a_raised_max_time_lets_a_run_go_on() -> None:
    def made(**settings):
        return bounds(pl.Trainer(accelerator="cpu", logger=False, max_epochs=3, **settings))

    assert made(max_time="00:00:00:01") != made(max_time="00:01:00:00") == made(max_time={"hours": 1})
    assert set(made()) == {"epochs", "steps", "patience"}  # as in checkpoints of earlier versions


def test_seconds_are_those_of_all_lives() -> None:
    first = Throughput()
    first.tokens, first.seconds = 10, 2.0
    time.sleep(0.02)
    second = Throughput()
    second.load_state_dict(first.state_dict())
    assert second.wall_seconds > first.state_dict()["wall_seconds"] - 0.02 > 0
    assert second.wall_seconds >= 0.02 and (second.tokens, second.seconds) == (10, 2.0)


def test_places_are_those_of_all_lives_that_trained() -> None:
    speed, task = Throughput(), SimpleNamespace(device=torch.device("cpu"))
    for ranks in (1, 1, 2):
        before, speed = speed.state_dict(), Throughput()
        speed.load_state_dict(before)
        assert not speed.trained
        speed.on_train_start(SimpleNamespace(world_size=ranks, precision="32-true"), task)
        assert speed.trained
    assert [place[1:] for place in speed.places] == [[1, "32-true"], [2, "32-true"]]
    former = Throughput()
    former.load_state_dict({"tokens": 20, "seconds": 1.0, "wall_seconds": 2.0})  # of an earlier version
    assert former.places == []


def test_what_is_drawn_and_saved_after_a_validation_is_no_time_of_training() -> None:
    speed = Throughput()
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False)
    speed.on_train_epoch_start(trainer, None)
    speed.on_validation_start(trainer, None)
    before = speed.seconds
    speed.on_validation_end(trainer, None)
    time.sleep(0.05)  # other callbacks
    speed.on_train_batch_start(trainer, None, None, 0)
    speed.on_validation_start(trainer, None)
    assert speed.seconds - before < 0.04


@pytest.mark.parametrize("make", [lambda: weight_ema(0.9, 0), NonMonotonicAveraging])
def test_a_skipped_step_is_one_that_an_average_has_seen(make) -> None:
    """The callback's state says so: the task of a resumed run no longer knows that its last step was skipped."""
    averaging, task = make(), Stepping()
    task.skipped = True
    averaging.on_train_batch_end(SimpleNamespace(global_step=7), task, None, None, 0)
    assert averaging.state_dict()["latest_update_step"] == 7


def test_a_rank_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A rank that waits for others would outlive rank 0 by minutes."""
    pids = tmp_path / "pid"
    launcher = os.fork()
    if launcher == 0:
        os.environ["RECUR_LAUNCHER"] = str(os.getpid())
        if os.fork() == 0:
            os.environ["LOCAL_RANK"] = "1"
            leave_with_launcher(seconds=0.05)
            pids.write_text(str(os.getpid()))
            time.sleep(60)
            os._exit(0)
        while not pids.exists() or not pids.read_text():
            time.sleep(0.01)
        os._exit(0)
    os.waitpid(launcher, 0)
    rank, until = int(pids.read_text()), time.monotonic() + 10
    while time.monotonic() < until and _alive(rank):
        time.sleep(0.02)
    assert not _alive(rank)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("start", [0, 3, 99])
def test_an_average_begins_with_the_weights_of_its_first_step(start):
    """Before that it is the weights themselves: a run that ends earlier has trained all the same."""
    model, ema = pl.LightningModule(), weight_ema(0.9, start)
    model.layer = torch.nn.Linear(2, 1, bias=False)
    model.register_buffer("count", torch.tensor(0))
    ema.setup(SimpleNamespace(), model, "fit")
    averaged, expected = ema._average_model, None
    for step in range(8):
        with torch.no_grad():
            model.layer.weight.fill_(float(step**2))
            model.count.fill_(step)
        for _ in range(2):  # two batches of one step
            ema.on_train_batch_end(SimpleNamespace(global_step=step + 1), model, None, None, step)
        expected = float(step**2) if step <= start else 0.9 * expected + 0.1 * step**2
        assert averaged.module.layer.weight[0, 0].item() == pytest.approx(expected)
        assert averaged.module.count == step and averaged.n_averaged == step + 1


def test_an_average_does_not_wait_for_the_device():
    """A tensor on torch's meta device has no number for the host to wait for."""
    model, ema = pl.LightningModule(), weight_ema(0.9, 0)
    model.layer = torch.nn.Linear(2, 1)
    ema.setup(SimpleNamespace(), model, "fit")
    ema._average_model.module.to("meta")
    model.to("meta")
    for step in range(3):
        ema.on_train_batch_end(SimpleNamespace(global_step=step + 1), model, None, None, step)
    assert ema._average_model.state_dict()["n_averaged"] == 3


@pytest.mark.parametrize("settings", [{}, {"window": 4}, {"reverse": True}])
def test_a_sample_begins_as_the_command_generate_does(settings: dict[str, Any]) -> None:
    """Ends of lines were left out of the prompt, and the start token before it."""
    data = text_data(**settings)
    fed: list[list[int]] = []

    def written(prompt: torch.Tensor, **_: Any) -> Iterator[torch.Tensor]:
        fed.append(prompt[:, 0].tolist())
        return iter([torch.tensor([3])] * 6)

    task: Any = SimpleNamespace(window=data.window, device=torch.device("cpu"), generate=written)
    run: Any = SimpleNamespace(tokenizer=data.tokenizer, task=task, require_forward=lambda: None)
    state = {"sanity_checking": False, "state": SimpleNamespace(fn="fit"), "is_global_zero": True}
    trainer: Any = SimpleNamespace(datamodule=data, callbacks=[], loggers=[], **state)
    for prompt in ("the king", "the king\n", "the king\r\nthe fox"):
        samples = Samples(prompt, 6, 0.0)
        samples.on_validation_end(trainer, task)
        (text,) = generate(run, prompt, Sampling(tokens=6, greedy=True))
        sampled, generated = fed[-2:]
        if data.reverse:  # which the command refuses
            start, *ids = generated
            assert sampled == [start, *ids[::-1]]
            assert samples.last is not None and samples.last.endswith(prompt.replace("\r", ""))
        else:
            assert sampled == generated and samples.last == text
