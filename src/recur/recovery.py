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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from recur import checkpoints
from recur.runs import load_checkpoint
from recur.sweeps import history

FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # what Lightning tells its profiler before it asks for a batch


class Files(CheckpointIO):
    """Reads and writes every checkpoint of a trainer through `recur.checkpoints`.

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

        super().load_state_dict({key: moved(value) for key, value in state_dict.items()})
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
            (folder / history.VALIDATIONS).unlink(missing_ok=True)
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
