"""The callback by which a run tells of itself, and hears that going on is hopeless."""

import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from recur.sweeps import history
from recur.sweeps.jobs import TRIAL


class ValidationLog(pl.Callback):
    """Adds every validation to `history.jsonl`; in an Optuna sweep it reports the metric and stops a hopeless run.

    Args:
        folder: the run's folder.
        monitor: name of the metric to report.

    Attributes:
        pruned: whether the study called the run off.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        self._folder, self._monitor = folder, monitor
        self._started = time.monotonic()
        self._trial: Any = None
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        """Whether there is no point in going on."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run called off stays so, should it be started once more before it could say so."""
        self.pruned = state_dict["pruned"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the trial of which this run is a part."""
        told = os.environ.get(TRIAL)
        if told and trainer.is_global_zero:
            from recur.sweeps.study import trial_of

            self._trial = trial_of(told)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, report, and stop on all ranks where rank 0 is told to."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("val/", "train/"))
        }
        stop = False
        if trainer.is_global_zero:
            epoch, done = progress(trainer)
            entry = {
                "step": trainer.global_step,
                "epoch": round(epoch, 3),
                "done": round(done, 4),
                "seconds": round(time.monotonic() - self._started, 2),
                "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            }
            history.append_validation(self._folder, entry)
            stop = self._report(metrics)
        if os.environ.get(TRIAL) and trainer.strategy.broadcast(stop):
            self.pruned = trainer.should_stop = True

    def _report(self, metrics: dict[str, float]) -> bool:
        if self._trial is None or self._monitor not in metrics:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resumed run repeats steps that were reported
            self._trial.report(metrics[self._monitor], step=len(history.read_validations(self._folder)))
            return bool(self._trial.should_prune())


def progress(trainer: pl.Trainer) -> tuple[float, float]:
    """Epochs trained so far, and the part of the whole run that they are."""
    within = trainer.fit_loop.epoch_loop.batch_progress.current.ready / max(1, trainer.num_training_batches)
    epoch = trainer.current_epoch + min(1.0, within)
    parts = [0.0]
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        parts.append(epoch / trainer.max_epochs)
    if trainer.max_steps > 0:
        parts.append(trainer.global_step / trainer.max_steps)
    return epoch, min(1.0, max(parts))
