"""What makes a run that was killed and resumed end as one that never was: when to save, what, and how it is taken up.

A resumed run starts from `last.ckpt`, so whatever happened after it happens again, bit for bit: batches and masks come
from plans, and everything else that a step depends on is in the checkpoint. Three places are saved:

- *between* two batches, before the next is asked for, with gradients applied, validation done and curves written;
- *before a validation*, when a signal comes during it: the resumed run validates again from its first batch;
- at the *end*, when only scoring is left.

Lightning counts batches so that it can restart in any of its hooks, none of which is between two batches (the last hook
of a batch comes before its curves are written, before a validation that is due, and before schedules that watch it).
`adjust` writes its counters as they have to be for a restart at these places. Its tests are `tests/test_resume.py`.

An epoch that ends before its last batch, at `max_steps` or because training was stopped, is saved as it was between two
batches: a run that is resumed with more steps goes on in it, and one that is not has nothing left but scoring.
"""

import io
import os
import pickle
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from recur.cli import rank
from recur.errors import UserError
from recur.runs import checkpoint as checkpoints
from recur.runs import journal
from recur.runs.files import is_inside
from recur.runs.run import FORMAT, load_checkpoint
from recur.training import lightning_internals as internals
from recur.training.failures import Stop, Stopped


class Files(CheckpointIO):
    """Reads and writes every checkpoint of a trainer through `recur.runs.checkpoint`.

    Rank 0 writes, and the others wait for it: an error is kept here until it is raised on all ranks (`settle`).

    Attributes:
        failure: the first error of this process.
    """

    def __init__(self) -> None:
        self.failure: UserError | None = None
        self._tried = False  # to read back what is beside the weights

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write; `storage_options={"keep": NAME}` keeps the former file under that name."""
        try:
            if not self._tried:
                _check_readable(checkpoint)
            self._tried = True
            checkpoints.write(checkpoint, Path(path), **(storage_options or {}))
        except UserError as error:
            self.failure = self.failure or error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read, without running code; a damaged file is refused."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete."""
        Path(path).unlink(missing_ok=True)

    @staticmethod
    def settle(trainer: pl.Trainer) -> None:
        """Raise on all ranks what failed on rank 0.

        Raises:
            UserError: the checkpoint could not be written.
        """
        files = trainer.strategy.checkpoint_io
        failure = trainer.strategy.broadcast(files.failure if isinstance(files, Files) else None)
        if failure is not None:
            raise failure


def _check_readable(checkpoint: Mapping[str, Any]) -> None:
    """Refuse to write what no reader would take, with all of the training behind it: no checkpoint may run code.

    Raises:
        UserError: names the part that holds more than tensors and plain values.
    """
    for key, part in checkpoint.items():
        if key in ("state_dict", "optimizer_states"):  # large, and read with the model
            continue
        buffer = io.BytesIO()
        torch.save(part, buffer)
        buffer.seek(0)
        try:
            torch.load(buffer, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"an object of {named[1]}" if named else "an object"
            rule = f"would hold {what}, and only tensors and plain values can be read back without running code"
            remedy = "leave it out, as by save_hyperparameters(ignore=[...]), or keep plain values in state_dict()"
            raise UserError(f"{key} of a checkpoint", rule=rule, remedy=remedy) from None


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which also breaks ties and follows a run whose folder was moved.

    Of two checkpoints with the same score it keeps the one with the lower validation loss: once every text is right,
    the loss still falls. What it keeps of the best follows the run's folder.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._best_loss: float | None = None

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Whether the present weights are the best so far."""
        loss = trainer.callback_metrics.get("val/loss")
        better = super().check_monitor_top_k(trainer, current)
        if not better and current is not None and loss is not None and self._best_loss is not None:
            tied = self.best_model_score is not None and bool(torch.equal(current, self.best_model_score.to(current)))
            better = tied and trainer.strategy.reduce_boolean_decision(float(loss) < self._best_loss)
        if better:
            self._best_loss = None if loss is None else float(loss)
        return better

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and raise on all ranks what failed on rank 0.

        Raises:
            UserError: a task of somebody's own does not log what is watched.
        """
        logged = [name for name in trainer.callback_metrics if name.startswith("val/")]
        trains = trainer.state.fn == "fit" and not trainer.sanity_checking
        if trains and str(self.monitor).startswith("val/") and logged and self.monitor not in logged:
            rule = "must be a metric that the task logs"
            raise UserError("monitor", self.monitor, rule, f"it can be {', '.join(sorted(logged))}")
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit":
            Files.settle(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where something was measured: not after an epoch that `max_steps` ended before its end or validation."""
        of_training = str(self.monitor).startswith("train/")  # whose figure is of a whole epoch
        partial = of_training and not internals.epoch_is_whole(trainer)
        if not partial and (self.monitor is None or self.monitor in trainer.callback_metrics):
            super().on_train_epoch_end(trainer, pl_module)
        Files.settle(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and the loss of the best."""
        return {**super().state_dict(), "best_loss": self._best_loss}

    def check_former(self, callbacks: Mapping[str, Any]) -> None:
        """Refuse to go on without the best checkpoint so far: only after all of the training would it be missed.

        Args:
            callbacks: states by key, of the checkpoint from which the run goes on.

        Raises:
            UserError: it is missing or damaged.
        """
        best = self._here(callbacks.get(self.state_key, {})).get("best_model_path")
        if best and not checkpoints.whole(Path(best)):
            state = "damaged" if Path(best).is_file() else "missing"
            remedy = "put a whole copy of it back, or add ~callbacks.best to score the last weights in its place"
            raise UserError("", rule=f"cannot go on: {best}, the best checkpoint so far, is {state}", remedy=remedy)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with this run's folder in place of the former."""
        state = self._here(state_dict)
        super().load_state_dict(state)
        self.current_score = state_dict["current_score"]
        self._best_loss = state_dict["best_loss"]

    def _here(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """A state with this run's folder in place of the former.

        Raises:
            UserError: it names a file elsewhere.
        """
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
        return state


class RankAgreement:
    """Lets the ranks take the same decision, over the CPU, so that no GPU is waited for."""

    def __init__(self, trainer: pl.Trainer) -> None:
        together = trainer.world_size > 1 and torch.distributed.is_initialized()
        self._group = torch.distributed.new_group(backend="gloo") if together else None

    def most(self, *values: int) -> list[int]:
        """The largest of each value over all ranks."""
        if self._group is None:
            return list(values)
        largest = torch.tensor(values)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, self._group)
        return [int(value) for value in largest]


def bounds(trainer: pl.Trainer) -> dict[str, Any]:
    """What decides how long training goes on: one that stopped early goes on once it was changed."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    patience = [getattr(callback, "patience", None) for callback in callbacks]
    seconds = [internals.seconds_allowed(callback) for callback in callbacks if isinstance(callback, Timer)]
    return {
        "epochs": trainer.max_epochs,
        "steps": trainer.max_steps,
        "patience": [int(value) for value in patience if value is not None],
        **({"seconds": seconds} if seconds else {}),
    }


def adjust(loops: dict[str, Any], place: str) -> None:
    """Write Lightning's counters as a restart at this place needs them."""
    if place == "validation":
        internals.write_restart_at_validation(loops)
    elif place == "cut":
        internals.write_epoch_open(loops)


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


def rewind(folder: Path, checkpoint: Path) -> None:
    """Cut a run's curves and validations back to a checkpoint: the resumed run writes the rest again.

    Half-written files go, too.

    Args:
        folder: of the run.
        checkpoint: from which it goes on.
    """
    for part in checkpoint.parent.glob(".*.part"):
        part.unlink()
    content = load_checkpoint(checkpoint)
    reached = content.get("reached", {})
    again = reached.get("place") == "validation"  # which the resumed run begins with
    journal.cut_validations(folder, content["global_step"] - again)
    sizes = reached.get("curves")
    if not sizes:
        return  # from elsewhere, or without curves
    for path in curves(folder):
        if path.name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[path.name]:
            os.truncate(path, sizes[path.name])


def tables(trainer: pl.Trainer) -> list[str]:
    """What Lightning's CSV loggers have written so far; their files are rewritten whole when a column is added."""
    texts = []
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and trainer.is_global_zero:
            logger.experiment.save()
            path = Path(logger.experiment.metrics_file_path)
            texts.append(path.read_text(encoding="utf-8") if path.is_file() else "")
    return texts


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
    """Keep the checkpoint of the best validation, or of the best epoch of training, as `best.ckpt`."""
    return BestCheckpoint(
        dirpath,
        "best",
        monitor=monitor,
        mode=mode,
        save_top_k=1,
        # Left to itself Lightning takes an interval of 1 batch for a whole epoch, and sees its last validation only.
        save_on_train_epoch_end=monitor.startswith("train/"),
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )


class LastCheckpoint(Callback):
    """Keeps `last.ckpt`, from which a run goes on, and the one before it.

    It is saved at the start of every epoch but the first, at the end, when a signal asks the run to stop, and as often
    as the arguments say. It has to come before a callback that averages weights, whose average replaces them at the end
    of training. (So it is no `Checkpoint`: Lightning puts those last.)

    Args:
        dirpath: folder of the checkpoints.
        every_minutes: so often besides; None for not.
        every_steps: after so many optimizer steps besides; None for not.
        stop: receives signals.
    """

    def __init__(
        self,
        dirpath: str,
        every_minutes: Annotated[float, Gt(0)] | None = None,
        every_steps: Annotated[int, Ge(1)] | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.path = Path(dirpath) / checkpoints.LAST
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self._steps = every_steps
        self._stop = Stop() if stop is None else stop
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._place: str | None = None  # while a checkpoint is taken: between, cut, validation or end
        self._cut = False  # whether the last epoch ended before its last batch, and was saved so
        self._ended = False  # whether the checkpoint was taken at the end of an epoch
        self._scored: dict[str, Any] = {}
        self._over: dict[str, Any] | None = None
        self._tables: list[str] = []
        self._agreement: RankAgreement

    # -------------------------------------------------------------------------------------------------------- when

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore what Lightning does not keep in a checkpoint."""
        self._stop.patient = True
        self._agreement = RankAgreement(trainer)
        restore_tables(trainer, self._tables)
        self._saved_at = time.monotonic()
        internals.restore_metrics(trainer, self._scored)
        now = bounds(trainer)
        # Of an earlier version it lacks some
        if self._over is not None and all(now.get(key) == value for key, value in self._over.items()):
            trainer.should_stop = True

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install our signal handlers again: Lightning has just replaced them."""
        self._stop.listen()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install our signal handlers again: in one of several processes Lightning's would wait for the others."""
        self._stop.listen()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same."""
        self._stop.listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install our signal handlers again; have the loader call `_between` before each batch."""
        self._stop.listen()
        internals.restore_metrics(trainer, self._scored)
        self._saved_step = trainer.global_step
        self._cut = False
        if self._ended:
            internals.begin_epoch(trainer)
        # The moment between two batches is when the loader is asked for the next one.
        loader: Any = trainer.train_dataloader
        loader.before_batch = lambda: self._between(trainer)

    def _between(self, trainer: pl.Trainer) -> None:
        internals.count_steps(trainer)
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
            self._stop.number, due, getattr(files, "failure", None) is not None
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
        """Obey a signal at once, not at the end of the validation."""
        if trainer.state.fn != "fit":
            return
        (signalled,) = self._agreement.most(self._stop.number)
        if not signalled:
            return
        if not trainer.sanity_checking:
            if internals.accumulates(trainer) or internals.trains_no_more(trainer):
                return  # no checkpoint has gradients half accumulated, and a restart without training validates nothing
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):  # the model has the average's weights now
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._save(trainer, "validation")
        raise Stopped(signalled)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the place where an epoch was cut short, before its sums are closed."""
        internals.end_restart(trainer)
        if trainer.global_step > 0 and not internals.epoch_is_whole(trainer) and not internals.accumulates(trainer):
            for callback in trainer.checkpoint_callbacks:  # the place has to know of the best that was just found
                if isinstance(callback, BestCheckpoint):
                    callback.on_train_epoch_end(trainer, pl_module)  # which later does nothing more
            self._save(trainer, "cut")
            self._cut = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end, before an average replaces the weights."""
        if trainer.global_step > 0 and not self._cut:
            self._save(trainer, "end")
        (signalled,) = self._agreement.most(self._stop.number)
        if signalled:
            raise Stopped(signalled)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal ends the process at once."""
        self._stop.listen()
        self._stop.patient = False
        if self._stop.number and rank() == 0:
            raise Stopped(self._stop.number)

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
        self._saved_at, self._saved_step, self._stop.saved = time.monotonic(), trainer.global_step, True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add how far the curves are, what was last measured, and whether training is over."""
        if self._place is None:
            return
        adjust(checkpoint["loops"]["fit_loop"], self._place)
        checkpoint["reached"] = {
            "place": self._place,
            "curves": {path.name: synced_size(path) for path in curves(self.path.parent.parent)},
            "tables": tables(trainer),
            "metrics": internals.as_tensors(trainer.callback_metrics),
            "over": bounds(trainer) if trainer.should_stop else None,  # also where `min_epochs` has it go on
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore it."""
        reached = checkpoint.get("reached", {})
        self._scored, self._over = reached.get("metrics", {}), reached.get("over")
        self._tables = reached.get("tables", [])
        self._ended = reached.get("place") == "end"
        if self._ended:
            internals.drop_loader_states(checkpoint["loops"]["fit_loop"])


class WholeSteps(Callback):
    """Lets what ends training early wait for the end of the step: no checkpoint has gradients half accumulated.

    It has to be the last of the callbacks, any of which may ask for that end (early stopping, `trainer.max_time`).
    """

    def __init__(self) -> None:
        self._asked: str | None = None  # within a step: after a batch or a validation

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is asked for yet."""
        self._asked = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on at the batch that is next, also where the task has asked for the number of steps before."""
        internals.load_late_loader_states(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End training where the step ends; what a validation within it asked for is not validated again."""
        if internals.accumulates(trainer):
            self._hold(trainer, "batch")
        elif self._asked is not None:
            if self._asked == "validation" and not internals.validation_is_due(trainer):
                internals.skip_validation(trainer)
            trainer.should_stop, self._asked = True, None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train on until the step ends."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and internals.accumulates(trainer):
            self._hold(trainer, "validation")

    def _hold(self, trainer: pl.Trainer, place: str) -> None:
        if trainer.should_stop:
            trainer.should_stop, self._asked = False, place


class SelfContained(Callback):
    """Puts into every checkpoint what is needed to use it alone.

    Args:
        config: the resolved config, plain values.
        tokenizer: the tokenizer's JSON.
        data: what the model has to know of the data, plain values.
        fingerprint: of the data; see `recur.runs.fingerprint`.
    """

    def __init__(
        self, config: dict[str, Any], tokenizer: str, data: dict[str, Any], fingerprint: dict[str, Any]
    ) -> None:
        self._content = {
            "format": FORMAT,
            "config": config,
            "tokenizer": tokenizer,
            "data": data,
            "fingerprint": fingerprint,
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the key `recur`."""
        checkpoint["recur"] = self._content
