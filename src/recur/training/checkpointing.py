"""What makes a run that was killed and resumed end as one that never was: when to save, what, and how it is taken up.

A resumed run starts from `last.ckpt`, so whatever happened after it happens again, bit for bit: batches and masks come
from plans, and everything else that a step depends on is in the checkpoint. Three places are saved:

- *between* two batches, before the next is asked for, with gradients applied, validation done and curves written;
- *before a validation*, when a signal comes during it: the resumed run validates again from its first batch;
- at the *end*, when only scoring is left.

Lightning counts batches so that it can restart in any of its hooks, none of which is between two batches (the last hook
of a batch comes before its curves are written, before a validation that is due, and before schedules that watch it).
`adjust` writes its counters as they have to be for a restart at these places. Its tests are `tests/test_resume.py`.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from recur.cli import rank
from recur.errors import UserError
from recur.runs import checkpoint as checkpoints
from recur.runs import journal
from recur.runs.files import is_inside
from recur.runs.run import FORMAT, load_checkpoint
from recur.training.failures import Stop, Stopped

FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # what Lightning tells its profiler before it asks for a batch


class Files(CheckpointIO):
    """Reads and writes every checkpoint of a trainer through `recur.runs.checkpoint`.

    Rank 0 writes, and the others wait for it: an error is kept here until all ranks hear of it (`settle`).

    Attributes:
        failure: the first error of this process, in one line.
    """

    def __init__(self) -> None:
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write; `storage_options={"keep": NAME}` keeps the former file under that name."""
        try:
            checkpoints.write(checkpoint, Path(path), **(storage_options or {}))
        except ValueError as error:
            self.failure = self.failure or str(error)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read, without running code and without believing damage."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete."""
        Path(path).unlink(missing_ok=True)

    @staticmethod
    def settle(trainer: pl.Trainer) -> None:
        """Raise on all ranks what failed on rank 0.

        Raises:
            ValueError: the checkpoint could not be written.
        """
        files = trainer.strategy.checkpoint_io
        failure = trainer.strategy.broadcast(files.failure if isinstance(files, Files) else None)
        if failure:
            raise ValueError(failure)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, for runs that are moved: what it remembers of the best follows the folder."""

    @property
    def state_key(self) -> str:
        """Lightning's own, so that runs of before resume."""
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint")

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        Files.settle(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state, with this run's folder in place of the former."""
        former, present = str(state_dict.get("dirpath")), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, str) and value.startswith(former):
                return present + value[len(former) :]
            if isinstance(value, dict):
                return {moved(key): kept for key, kept in value.items()}
            return value

        state = {key: moved(value) for key, value in state_dict.items()}
        named = [state.get(key) for key in ("best_model_path", "kth_best_model_path", "last_model_path")]
        for path in (*named, *(state.get("best_k_models") or ())):
            if path and not is_inside(path, present):  # a file that a better checkpoint would replace
                raise UserError(str(path), rule=f"is named by the run's checkpoint, and lies out of {present}")
        super().load_state_dict(state)
        self.current_score = state_dict["current_score"]


class RankAgreement:
    """Brings the ranks to one mind, on the CPU, so that no GPU is waited for."""

    def __init__(self, trainer: pl.Trainer) -> None:
        together = trainer.world_size > 1 and torch.distributed.is_initialized()
        self._group = torch.distributed.new_group(backend="gloo") if together else None

    def most(self, *values: int) -> list[int]:
        """The largest of each value over all ranks."""
        if self._group is None:
            return list(values)
        told = torch.tensor(values)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, self._group)
        return [int(value) for value in told]


def bounds(trainer: pl.Trainer) -> dict[str, Any]:
    """What decides how long training goes on: one that stopped early goes on where somebody changed it."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    patience = [getattr(callback, "patience", None) for callback in callbacks]
    return {
        "epochs": trainer.max_epochs,
        "steps": trainer.max_steps,
        "patience": [int(value) for value in patience if value is not None],
    }


def adjust(loops: dict[str, Any], place: str, trainer: pl.Trainer) -> None:
    """Write Lightning's counters as a restart at this place needs them."""
    loop = trainer.fit_loop.epoch_loop
    if place == "validation":
        # "In the middle of a validation", which a restart begins again: one batch begun, none done.
        loops["epoch_loop.val_loop.batch_progress"] = {
            "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
            "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
            "is_last_batch": False,
        }
    elif place == "between" and loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
        # A restart takes such a checkpoint for one of the validation's end, and counts this step once more.
        state = loops["epoch_loop.state_dict"]
        state["_batches_that_stepped"] -= 1


# ------------------------------------------------------------------------------------------------------------- curves
def curves(folder: Path) -> Iterator[Path]:
    """TensorBoard's files of a run."""
    return iter(sorted(folder.glob("events.out.tfevents.*")))


def synced_size(path: Path) -> int:
    """Bytes of a file, once they are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        return os.fstat(handle).st_size
    finally:
        os.close(handle)


def rewind(folder: Path, checkpoint: Path | None) -> None:
    """Take back what a run's curves say beyond a checkpoint: the resumed run says it again. Half files go, too.

    Args:
        folder: of the run.
        checkpoint: from which it goes on; None for a run that begins, perhaps for the second time, where a former life
            left curves and no checkpoint.
    """
    if checkpoint is None:
        if not (folder / "checkpoints").is_dir() or not any((folder / "checkpoints").glob("*.ckpt")):
            for path in curves(folder):
                path.unlink()
            (folder / journal.VALIDATIONS).unlink(missing_ok=True)
        return
    for part in checkpoint.parent.glob(".*.part"):
        part.unlink()
    sizes = load_checkpoint(checkpoint).get("reached", {}).get("curves")
    if not sizes:
        return  # from elsewhere, or without curves
    for path in curves(folder):
        if path.name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[path.name]:
            os.truncate(path, sizes[path.name])


def tables(trainer: pl.Trainer) -> list[str]:
    """What Lightning's CSV loggers have written so far; their files are rewritten whole when a column is added."""
    found = []
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and trainer.is_global_zero:
            logger.experiment.save()
            path = Path(logger.experiment.metrics_file_path)
            found.append(path.read_text(encoding="utf-8") if path.is_file() else "")
    return found


def restore_tables(trainer: pl.Trainer, texts: list[str]) -> None:
    """Put that back: a CSV logger that is started again begins by deleting its file."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    if not trainer.is_global_zero or len(loggers) != len(texts):
        return
    for logger, text in zip(loggers, texts, strict=True):
        if text:
            experiment = logger.experiment
            Path(experiment.metrics_file_path).write_text(text, encoding="utf-8")
            experiment.metrics_keys = text.partition("\n")[0].strip().split(",")


def best_checkpoint(monitor: str, mode: str, dirpath: str) -> BestCheckpoint:
    """Keep the checkpoint of the best validation as `best.ckpt`."""
    return BestCheckpoint(
        dirpath,
        "best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which a run goes on, and the one before it.

    It is saved at the start of every epoch but the first, at the end, when a signal asks the run to stop, and:

    Args:
        dirpath: folder of the checkpoints.
        every_minutes: so often besides; None for not.
        every_steps: after so many optimizer steps besides; None for not.

    Attributes:
        stop: hears signals.
    """

    def __init__(self, dirpath: str, every_minutes: float | None = None, every_steps: int | None = None) -> None:
        for name, value in (("every_minutes", every_minutes), ("every_steps", every_steps)):
            if value is not None and not value > 0:
                raise ValueError(f"callbacks.last.{name} must be above 0, got {value}: null saves at epochs only")
        self.path = Path(dirpath) / checkpoints.LAST
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self._steps = every_steps
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._place: str | None = None  # while a checkpoint is taken: between, validation or end
        self._scored: dict[str, Any] = {}
        self._over: dict[str, Any] | None = None
        self._tables: list[str] = []
        self._agreement: RankAgreement
        self.stop = Stop()

    # -------------------------------------------------------------------------------------------------------- when

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Get between the batches; take up what Lightning forgot."""
        self.stop.patient = True
        self._agreement = RankAgreement(trainer)
        restore_tables(trainer, self._tables)
        self._saved_at = time.monotonic()
        profiler: Any = trainer.profiler  # type: ignore[attr-defined]
        profile = profiler.start

        def start(action: str) -> None:
            if action == FETCH:
                self._between(trainer)
            profile(action)

        # A profiler is the one thing that hears of the moment between two batches, and any profiler will do.
        profiler.start = start
        trainer._logger_connector._callback_metrics.update(self._scored)
        if self._over is not None and self._over == bounds(trainer):
            trainer.should_stop = True

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear signals again: Lightning has just taken them over."""
        self.stop.listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear signals again."""
        self.stop.listen()
        trainer._logger_connector._callback_metrics.update(self._scored)
        self._saved_step = trainer.global_step

    def _between(self, trainer: pl.Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop.batch_progress.current.ready % trainer.accumulate_grad_batches:
            return  # gradients half accumulated are in no checkpoint
        step, files = trainer.global_step, trainer.strategy.checkpoint_io
        due = step > self._saved_step and (
            (self._steps is not None and step % self._steps == 0)
            or loop.batch_progress.current.ready == 0
            or (self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds)
        )
        signalled, due_somewhere, failed = self._agreement.most(
            self.stop.number, due, getattr(files, "failure", None) is not None
        )
        if failed:
            Files.settle(trainer)
        if due_somewhere or (signalled and step > self._saved_step):
            self._save(trainer, "between")
        if signalled:
            raise Stopped(signalled)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Do not make a signal wait for the end of a validation."""
        if trainer.state.fn != "fit":
            return
        (signalled,) = self._agreement.most(self.stop.number)
        if not signalled:
            return
        if not trainer.sanity_checking:
            if trainer.fit_loop.epoch_loop._should_accumulate():
                return  # gradients half accumulated are in no checkpoint: a few batches more
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # the model has the average's weights now
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._save(trainer, "validation")
        raise Stopped(signalled)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let schedules that watch a metric go on in the first epoch after a restart, whose metrics are there now."""
        trainer.fit_loop._restarting = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end. `recur.train` sees to it that this comes before an average replaces the weights."""
        if trainer.global_step > 0:
            self._save(trainer, "end")
        (signalled,) = self._agreement.most(self.stop.number)
        if signalled:
            raise Stopped(signalled)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal has nothing to wait for."""
        self.stop.listen()
        self.stop.patient = False
        if self.stop.number and rank() == 0:
            raise Stopped(self.stop.number)

    # -------------------------------------------------------------------------------------------------------- what

    def _save(self, trainer: pl.Trainer, place: str) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
        self._place = place
        try:
            trainer.save_checkpoint(self.path, storage_options={"keep": checkpoints.PREVIOUS})
        finally:
            self._place = None
        Files.settle(trainer)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add how far the curves are, what was last measured, and whether training is over."""
        if self._place is None:
            return
        adjust(checkpoint["loops"]["fit_loop"], self._place, trainer)
        checkpoint["reached"] = {
            "place": self._place,
            "curves": {path.name: synced_size(path) for path in curves(self.path.parent.parent)},
            "tables": tables(trainer),
            "metrics": {name: torch.as_tensor(value).cpu() for name, value in trainer.callback_metrics.items()},
            "over": bounds(trainer) if self._place == "end" and trainer.should_stop else None,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take that up."""
        reached = checkpoint.get("reached", {})
        self._scored, self._over = reached.get("metrics", {}), reached.get("over")
        self._tables = reached.get("tables", [])


class SelfContained(Callback):
    """Puts into every checkpoint what is needed to use it alone.

    Args:
        config: the resolved config, plain values.
        tokenizer: the tokenizer's JSON.
        data: what the data told the model, plain values.
    """

    def __init__(self, config: dict[str, Any], tokenizer: str, data: dict[str, Any]) -> None:
        self._content = {"format": FORMAT, "config": config, "tokenizer": tokenizer, "data": data}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the key `recur`."""
        checkpoint["recur"] = self._content
