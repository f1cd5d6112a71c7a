"""Every private name of Lightning that this package uses.

`tests/training/test_lightning_internals.py` holds Lightning to each: that it exists, and that it does what is relied
on. An upgrade fails there first.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer, WeightAveraging


def accumulates(trainer: pl.Trainer) -> bool:
    """Whether the present batch's gradients wait for those of others before the optimizer takes a step."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just ended is one after which to validate."""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def skip_validation(trainer: pl.Trainer) -> None:
    """Have no validation follow the batch that has just ended."""
    trainer.fit_loop.epoch_loop._skip_next_val = True


def epoch_is_whole(trainer: pl.Trainer) -> bool:
    """Whether the epoch's last batch has been trained on."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def trains_no_more(trainer: pl.Trainer) -> bool:
    """Whether training is over once the validation under way has ended."""
    loop = trainer.fit_loop
    reached = trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps
    return reached or (trainer.should_stop and loop._can_stop_early)


def end_restart(trainer: pl.Trainer) -> None:
    """Let schedules that watch a metric go on in the first epoch after a restart, whose metrics are there now."""
    trainer.fit_loop._restarting = False


def begin_epoch(trainer: pl.Trainer) -> None:
    """Have a restart begin the next epoch: with `max_steps` it would count the batches of the one that is over on."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop.restarting = False
    loop.reset_restart_stage()
    end_restart(trainer)


def count_steps(trainer: pl.Trainer) -> None:
    """Have the curves go on at the present step, before a batch.

    A restart after a batch with a validation counts that batch's step once more, and what is such a batch depends on
    settings that may have changed.
    """
    if trainer.lightning_module.automatic_optimization:  # else a batch may have several steps
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def drop_loader_states(loops: dict[str, Any]) -> None:
    """Leave out of a checkpoint's counters where the training loaders were in an epoch that is over."""
    if loader_states(loops):
        loops["state_dict"]["combined_loader"] = []


def load_late_loader_states(trainer: pl.Trainer) -> None:
    """Give the training loaders the place at which a restart goes on, if they do not know it yet.

    Lightning does so when it makes them, which is too soon where `configure_optimizers` has asked for
    `estimated_stepping_batches`.
    """
    trainer.fit_loop._load_combined_loader_states()


def restore_metrics(trainer: pl.Trainer, metrics: dict[str, Any]) -> None:
    """Put what was last measured where `trainer.callback_metrics` looks for it."""
    trainer._logger_connector._callback_metrics.update(metrics)


def forget_step_values(trainer: pl.Trainer) -> None:
    """Have the next point of the curves show what its own step logs: what it does not log, an earlier step's stays."""
    for item in trainer._results.values() if trainer._results is not None else ():
        if item.meta.fx in ("training_step", "configure_gradient_clipping") and not item.meta.on_epoch:
            item.has_reset = True


def validates_by_time(trainer: pl.Trainer) -> bool:
    """Whether validations are some time apart and no number of batches."""
    return trainer._val_check_time_interval is not None  # type: ignore[attr-defined]


def seconds_allowed(timer: Timer) -> float | None:
    """For how long a timer lets training go on (`trainer.max_time`)."""
    return timer._duration


def averaged_steps(callback: WeightAveraging) -> int:
    """How many steps' weights an average holds."""
    average = callback._average_model
    return 0 if average is None else int(average.n_averaged)


def drop_averages(trainer: pl.Trainer) -> None:
    """Forget averages of weights: a validation after training would swap them in, whatever weights the task has."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback._average_model = None


def write_restart_at_validation(loops: dict[str, Any]) -> None:
    """Write the counters of a checkpoint so that a restart validates: one batch of it begun, none done."""
    loops["epoch_loop.val_loop.batch_progress"] = {
        "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
        "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
        "is_last_batch": False,
    }


def write_epoch_open(loops: dict[str, Any]) -> None:
    """Write the counters of a checkpoint taken at the end of an epoch that was cut short: the epoch goes on."""
    for scope in ("total", "current"):
        loops["epoch_progress"][scope]["processed"] -= 1


def loader_states(loops: dict[str, Any]) -> list[Any]:
    """The states of the training loaders in a checkpoint's counters; none where it was taken without a loader."""
    state = loops.get("state_dict")
    states = state.get("combined_loader", []) if isinstance(state, dict) else []
    return states if isinstance(states, list) else [states]


def as_tensors(metrics: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Metrics as tensors on the CPU, for a checkpoint."""
    return {name: torch.as_tensor(value).cpu() for name, value in metrics.items()}
