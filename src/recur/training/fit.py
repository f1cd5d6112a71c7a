"""Training: what `recur.train` and a notebook call with a data module, a task and a trainer that they have built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from recur.errors import UserError
from recur.runs.run import load_checkpoint
from recur.tasks.base import Stepping, reset_metrics
from recur.training import by_hand
from recur.training import lightning_internals as internals
from recur.training.checkpointing import WholeSteps
from recur.training.failures import explained
from recur.training.report import metrics_of


@dataclass(frozen=True)
class Trained:
    """The result of training.

    Attributes:
        results: metrics by split (`val`, `test`) and name, of the best checkpoint where there is one.
        best: the best value of the monitored metric; None where nothing was monitored.
        metrics: every metric that was logged, by its full name, at its last value: `train/loss` of the last step,
            `train/epoch_loss` of the last epoch, `val/accuracy` and `test/accuracy` as in `results`, learning rates.
    """

    results: dict[str, dict[str, float]]
    best: float | None
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    data: pl.LightningDataModule,
    task: pl.LightningModule,
    trainer: pl.Trainer,
    *,
    checkpoint: Path | None = None,
    test: bool = True,
    called_off: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a task on data, then score its best checkpoint.

    Args:
        data: set up; a `SentimentData`, a `LanguageData` or another with their methods.
        task: of the data's family.
        trainer: with the callbacks that the run shall have, among them a `ModelCheckpoint` for the best weights;
            `recur.load` opens what it writes.
        checkpoint: from which to go on.
        test: whether to score the test split, where there is one.
        called_off: asked after training; where it returns true, the run is not scored.

    Returns:
        the metrics. The task has the weights that were scored.

    Raises:
        UserError: a trainer that has trained before, a task that has no name by which its checkpoints could build it
            again, a loss that is not finite, memory that ran out, settings that do not fit the data.
    """
    if trainer.global_step:
        raise UserError("trainer", rule="has trained before", remedy="build a new one, with callbacks of its own")
    check_lengths(data, trainer, test=test)
    by_hand.complete(data, task, trainer)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if not any(isinstance(callback, WholeSteps) for callback in callbacks):
        callbacks.append(WholeSteps())
    reset_metrics(task)
    if checkpoint is None and isinstance(task, Stepping):
        task.prepare(data)
    # Lightning converts the weights after it has loaded a checkpoint's, which would be rounded to 32 bits first.
    task = trainer.precision_plugin.convert_module(task)  # type: ignore[assignment]
    with explained(trainer):
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        internals.drop_averages(trainer)
        best: Any = trainer.checkpoint_callback
        score = None if best is None or best.best_model_score is None else float(best.best_model_score)
        results = {"val": metrics_of(trainer, "val/")}
        logged = metrics_of(trainer, "")
        if called_off():
            return Trained(results, score, logged)
        # By hand: restoring through the trainer would bring back the raw weights beside an average's.
        if best is not None and best.best_model_path:
            task.load_state_dict(load_checkpoint(Path(best.best_model_path))["state_dict"])
        elif checkpoint is not None and (content := load_checkpoint(checkpoint))["global_step"] == trainer.global_step:
            task.load_state_dict(content["state_dict"])  # nothing was left to train, so no average was swapped in
        if trainer.limit_val_batches:
            with _undrawn(task):
                trainer.validate(task, datamodule=data, verbose=False, weights_only=True)
            results["val"] = metrics_of(trainer, "val/")
        if test and getattr(data, "has_test", True) and trainer.limit_test_batches:
            trainer.test(task, datamodule=data, verbose=False, weights_only=True)
            results["test"] = metrics_of(trainer, "test/")
    final = {f"{split}/{name}": value for split, values in results.items() for name, value in values.items()}
    return Trained(results, score, {**logged, **final})


@contextmanager
def _undrawn(task: pl.LightningModule) -> Iterator[None]:
    """Add no points to curves of validation: they are of the weights at each step, not of the best checkpoint."""
    if not isinstance(task, Stepping):
        yield
        return
    task.draws = False
    try:
        yield
    finally:
        task.draws = True


def check_place(data: Any, trainer: pl.Trainer, checkpoint: Path) -> None:
    """Refuse to go on with fewer epochs than are over, or in one whose other batches would not be those of before.

    Args:
        data: set up.
        trainer: whose number of processes counts.
        checkpoint: from which to go on.

    Raises:
        UserError: names what is different.
    """
    data.trainer = trainer
    content = load_checkpoint(checkpoint)
    reached = content.get("reached")
    place = reached.get("place") if isinstance(reached, dict) else None
    over, most = content["epoch"], trainer.max_epochs
    if most is not None and 0 <= most < over:
        raise UserError("trainer.max_epochs", most, f"must be at least {over}, the epochs that are over", "raise it")
    if place == "end":  # of an epoch: the next begins with its own plan
        return
    for state in internals.loader_states(content["loops"]["fit_loop"]):
        data.train_dataloader().check_place(state, validating=place == "validation")


def check_lengths(data: Any, trainer: pl.Trainer, *, test: bool = True) -> None:
    """Refuse settings that do not fit the numbers of batches, before anything is trained.

    Args:
        data: set up.
        trainer: whose limits count, and its number of processes.
        test: whether the test split will be scored.

    Raises:
        UserError: a split holds no text for each process, a part of it no whole batch, or an epoch fewer batches than a
            step (every epoch would be one short step, which cannot be intended) or than lie between two validations; or
            several processes validate by the clock.
    """
    data.trainer = trainer
    loader = data.train_dataloader()
    batches, whole = _limited(loader, "train", trainer), len(loader)
    if trainer.accumulate_grad_batches > whole:  # whatever the limits, which are for trying a config
        rule = f"must be at most the {whole} batches of an epoch"
        raise UserError("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, rule)
    every = getattr(trainer, "val_check_interval", None)  # Lightning sets none where it is a time
    if internals.validates_by_time(trainer) and trainer.world_size > 1:
        rule = "is a time, and each of several processes would look at its own clock"
        raise UserError("trainer.val_check_interval", rule=rule, remedy="set a number of batches")
    validated = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    if isinstance(every, int) and every > batches and validated:
        rule = f"must be at most the {batches} batches of an epoch"
        remedy = "set trainer.check_val_every_n_epoch=null to count the batches of several epochs"
        raise UserError("trainer.val_check_interval", every, rule, remedy)
    if trainer.limit_val_batches:
        _limited(data.val_dataloader(), "val", trainer)
    if test and getattr(data, "has_test", True) and trainer.limit_test_batches:
        _limited(data.test_dataloader(), "test", trainer)


def _is_part(limit: int | float) -> bool:
    return isinstance(limit, float) and 0 < limit < 1


def _limited(loader: Any, split: str, trainer: pl.Trainer) -> int:
    """Batches of a split that are used."""
    limit, batches = getattr(trainer, f"limit_{split}_batches"), len(loader)
    if not _is_part(limit):
        return min(batches, limit) if isinstance(limit, int) else batches
    if int(batches * limit) == 0:
        overfits = trainer.overfit_batches > 0 and split != "test"  # type: ignore[attr-defined]
        key = "trainer.overfit_batches" if overfits else f"trainer.limit_{split}_batches"
        raise UserError(key, limit, f"is less than one of the {batches} batches of {split}", "set a number of batches")
    return int(batches * limit)
