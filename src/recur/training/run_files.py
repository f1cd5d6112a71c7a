"""What a run reads in its folder before it begins, and what it writes there when it does.

Everything is checked first (`take_up`) and written in one place (`begin`), so that a refused command changes nothing.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from recur.cli import notify, rank
from recur.config.compose import Composed
from recur.errors import UserError
from recur.runs import checkpoint as checkpoints
from recur.runs import folder as folders
from recur.runs.files import write_atomic
from recur.runs.limits import check_training_state
from recur.runs.run import claim, load_checkpoint, name_holder, release
from recur.training import checkpointing, report
from recur.training.failures import NotFiniteError
from recur.training.loggers import log_settings
from recur.training.tensorboard import announce_hparams, settings_of

_begun: set[Path] = set()  # folders of new runs that this process has begun to write


@runtime_checkable
class Checking(Protocol):
    """A callback or a task that may refuse to be trained together with the others."""

    def check_fit(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Raise a `UserError` where it must not; nothing has been written yet."""


def take_up(composed: Composed) -> Path | None:
    """Look at the folder of a run that is to begin or to go on.

    Returns:
        the checkpoint from which it goes on; None for a new run.

    Raises:
        UserError: the folder is in use, holds another run, or has no whole checkpoint to go on from.
    """
    if composed.resumed:
        claim(composed.folder)
        checkpoint, trouble = checkpoints.to_resume(composed.folder)
        _check_state(checkpoint)
        if trouble and rank() == 0:
            notify(f"warning: {trouble}")
        return checkpoint
    if rank() == 0:
        folders.check_free(composed.folder, composed.config_text, overwrite=composed.config["overwrite"])
    return None


def _check_state(checkpoint: Path) -> None:
    """Look at a checkpoint before the run goes on from it.

    Raises:
        UserError: it cannot be read, or says of its training what no run writes.
    """
    content = load_checkpoint(checkpoint)
    try:
        check_training_state(content)
    except ValueError as error:
        raise UserError(f"cannot go on from {checkpoint}:", rule=str(error)) from None


def check_parts(task: Any, trainer: pl.Trainer, checkpoint: Path | None) -> None:
    """Ask the task and the callbacks whether they can be trained together, before anything is written.

    Args:
        task: of the run.
        trainer: with the callbacks.
        checkpoint: from which the run goes on; None for a new one.

    Raises:
        UserError: one of them refuses.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for part in (task, *callbacks):
        if isinstance(part, Checking):
            part.check_fit(trainer, task)
    best = trainer.checkpoint_callback
    if checkpoint is not None and isinstance(best, checkpointing.BestCheckpoint):
        best.check_former(load_checkpoint(checkpoint)["callbacks"])


def begin(composed: Composed, data: Any, task: Any, trainer: pl.Trainer, checkpoint: Path | None) -> None:
    """Write what a run's folder holds from its beginning, and print what is about to be trained.

    A resumed run's `.hydra/config.yaml` follows when the other ranks have read it (`RewrittenConfig`).
    """
    folder = composed.folder
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder)
        name_holder(folder)
        if checkpoint is None:
            take_up(composed)  # again, now that the folder is locked
            _begun.add(folder)
            folders.clear(folder)
            _write_hydra(composed)
        else:
            (folder / folders.NOT_FINITE).unlink(missing_ok=True)
            checkpointing.rewind(folder, checkpoint)
            trainer.callbacks.append(RewrittenConfig(composed))  # type: ignore[attr-defined]
    if folder.is_dir():
        composed.configure_logging()
        report.quiet()
    if trainer.is_global_zero:
        if checkpoint is None:
            write_atomic(folder / "config.yaml", composed.config_text)
            write_atomic(folder / "tokenizer.json", data.tokenizer.to_json())
        report.opening(folder, composed.config, data, task, trainer)
        announce_hparams(trainer.loggers, composed.config, task.family)
        log_settings(trainer.loggers, settings_of(composed.config), folder)


@contextlib.contextmanager
def withdrawn_if_refused(folder: Path) -> Iterator[list[pl.Trainer]]:
    """Take a new run's folder away again where the run is refused before its first step.

    One that ends by a loss or gradient that is not finite says so in its folder: that is an outcome of its settings.
    Most refusals come before anything is written; what only the first batches show, such as memory that does not
    suffice, comes after it.

    Args:
        folder: of the run.

    Yields:
        an empty list, for the trainer once it is built.
    """
    built: list[pl.Trainer] = []
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield built
    except UserError as error:
        exploded = isinstance(error, NotFiniteError)
        if exploded and rank() == 0 and folders.holds_run(folder):
            with contextlib.suppress(OSError):  # the error itself is of more use
                write_atomic(folder / folders.NOT_FINITE, f"{error}\n")
        refused = not any(trainer.global_step for trainer in built) and not exploded
        if refused and folder in missing and rank() == 0:
            release(folder)
            if folder in _begun:
                folders.clear(folder, marked=False)
                (folder / ".lock").unlink(missing_ok=True)
            # MLflow's logger makes its database when it is built. What else is there is of another process, which began
            # a run in the same folder meanwhile.
            if folder in _begun or not (folders.holds_run(folder) or (folder / ".lock").exists()):
                (folder / "mlflow.db").unlink(missing_ok=True)
            for place in missing:
                with contextlib.suppress(OSError):  # something else is in it
                    place.rmdir()
        raise
    finally:
        _begun.discard(folder)


class RewrittenConfig(Callback):
    """Writes the config of a resumed run once training has begun with it, and takes the former figures away.

    They are of other weights now; the end of the run writes them again. The best checkpoint of a run that goes on
    without keeping one gets another name: the figures will be those of the last weights.

    Args:
        composed: the config.
    """

    def __init__(self, composed: Composed) -> None:
        self._composed = composed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        self._write(trainer)
        if trainer.is_global_zero:
            (self._composed.folder / "metrics.json").unlink(missing_ok=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, where nothing was left to train."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            write_atomic(self._composed.folder / "config.yaml", self._composed.config_text)
            _write_hydra(self._composed)
            best = self._composed.folder / "checkpoints" / "best.ckpt"
            if trainer.checkpoint_callback is None and best.is_file():
                best.replace(best.with_name("best.former.ckpt"))


def _write_hydra(composed: Composed) -> None:
    """Each file whole or not at all, and written beside the folder, in which nothing else may lie."""
    inner = composed.folder / ".hydra"
    inner.mkdir(exist_ok=True)
    for name, text in reversed(composed.hydra_files().items()):  # the config last: it is the mark of a run
        draft = composed.folder / f".hydra.{name}"
        write_atomic(draft, text)
        draft.replace(inner / name)
