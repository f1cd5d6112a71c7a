"""Each private name of Lightning that is used: that it is there, and that it does what is relied on."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from recur.training import lightning_internals as internals
from recur.training.callbacks import OwnValues


class _Task(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, number):
        return self.layer(batch).sum()

    def validation_step(self, batch, number):
        self.log("val/loss", self.layer(batch).sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class _Observer(pl.Callback):
    """Asks after every batch, and after every epoch."""

    def __init__(self) -> None:
        self.accumulates, self.due, self.whole, self.loops = [], [], [], []

    def on_train_batch_end(self, trainer, task, outputs, batch, number):
        self.accumulates.append(internals.accumulates(trainer))
        self.due.append(internals.validation_is_due(trainer))

    def on_train_epoch_end(self, trainer, task):
        self.whole.append(internals.epoch_is_whole(trainer))
        self.loops.append(trainer.fit_loop.state_dict())


def _fit(*callbacks: pl.Callback, task: pl.LightningModule | None = None, **settings) -> pl.Trainer:
    loader = DataLoader(torch.ones(6, 1), batch_size=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"max_epochs": 1, "logger": False, **settings},
    )
    trainer.fit(_Task() if task is None else task, loader, DataLoader(torch.ones(2, 1)))
    return trainer


@pytest.fixture(autouse=True)
def quiet() -> None:
    import warnings

    warnings.filterwarnings("ignore", message=".*(does not have many workers|treespec|PyTree).*")


def test_where_a_step_ends_and_a_validation_is_due() -> None:
    seen = _Observer()
    _fit(seen, accumulate_grad_batches=2, val_check_interval=3)
    assert seen.accumulates == [True, False] * 3
    assert seen.due == [False, False, True, False, False, True]
    assert seen.whole == [True]


def test_a_validation_can_be_skipped() -> None:
    validated = []

    class Skip(pl.Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, number):
            if number == 2:
                internals.skip_validation(trainer)

        def on_validation_end(self, trainer, task):
            validated.append(trainer.global_step)

    _fit(Skip(), val_check_interval=3)
    assert validated == [6]


def test_an_epoch_that_max_steps_ends_is_not_whole_and_can_be_written_as_open() -> None:
    seen = _Observer()
    _fit(seen, max_epochs=-1, max_steps=4)
    assert seen.whole == [False]
    loops = seen.loops[0]
    assert loops["epoch_progress"]["current"]["processed"] == 1
    internals.write_epoch_open(loops)
    assert loops["epoch_progress"]["current"]["processed"] == loops["epoch_progress"]["total"]["processed"] == 0


def test_counters_of_a_restart_have_their_places() -> None:
    seen = _Observer()
    trainer = _fit(seen)
    loops = seen.loops[0]
    assert set(loops["epoch_loop.val_loop.batch_progress"]) == {"total", "current", "is_last_batch"}
    internals.write_restart_at_validation(loops)
    trainer.fit_loop.load_state_dict(loops)
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    assert (progress.total.ready, progress.total.started, progress.total.processed) == (1, 1, 0)
    assert loops["epoch_loop.state_dict"]["_batches_that_stepped"] == 6


def test_a_restart_can_be_ended_and_metrics_can_be_put_back() -> None:
    trainer = _fit()
    trainer.fit_loop.restarting = True
    internals.end_restart(trainer)
    assert not trainer.fit_loop.restarting
    internals.restore_metrics(trainer, {"val/other": torch.tensor(3.0)})
    assert float(trainer.callback_metrics["val/other"]) == 3
    assert set(internals.as_tensors(trainer.callback_metrics)) >= {"val/loss", "val/other"}


def test_an_average_counts_its_steps() -> None:
    class Average(WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx is not None and step_idx >= 2

    average = Average()
    assert internals.averaged_steps(average) == 0
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, task):
            seen.append(internals.averaged_steps(average))

    _fit(average, Look())
    assert seen == [4]


def test_an_average_that_was_dropped_is_not_validated() -> None:
    class Average(WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx == 0

    trainer = _fit(average := Average())
    task = trainer.lightning_module
    assert internals.averaged_steps(average) == 1
    internals.drop_averages(trainer)
    assert internals.averaged_steps(average) == 0
    task.load_state_dict({"layer.weight": torch.tensor([[7.0]]), "layer.bias": torch.zeros(1)})
    trainer.validate(task, DataLoader(torch.ones(1, 1)), verbose=False)
    assert trainer.callback_metrics["val/loss"] == 7


class _Recorder(Logger):
    """Keeps the points of the curves."""

    name, version = "points", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: list[dict[str, float]] = []

    def log_metrics(self, metrics, step=None):
        self.points.append(metrics)

    def log_hyperparams(self, params, *more, **settings):
        pass


class _Sometimes(_Task):
    """Logs one value at every other batch, as where batches without labels have no loss."""

    def training_step(self, batch, number):
        if number % 2 == 0:
            self.log("a", float(number))
        self.log("b", float(number))
        return super().training_step(batch, number)


@pytest.mark.parametrize(
    ("callbacks", "shown"), [([], [0, 0, 2, 2, 4, 4]), ([OwnValues()], [0, None, 2, None, 4, None])]
)
def test_a_point_of_the_curves_shows_its_own_steps_values_alone(callbacks, shown) -> None:
    """Lightning shows those of an earlier step beside them."""
    recorder = _Recorder()
    _fit(*callbacks, task=_Sometimes(), logger=recorder, log_every_n_steps=1)
    points = [point for point in recorder.points if "b" in point]
    assert [point["b"] for point in points] == [0, 1, 2, 3, 4, 5]
    assert [point.get("a") for point in points] == shown


@pytest.mark.parametrize(
    ("interval", "timed"), [("00:00:10:00", True), ({"minutes": 10}, True), (3, False), (0.5, False), (1.0, False)]
)
def test_validations_are_a_time_apart_or_batches(interval, timed: bool) -> None:
    trainer = pl.Trainer(accelerator="cpu", val_check_interval=interval, logger=False, enable_checkpointing=False)
    assert internals.validates_by_time(trainer) == timed
