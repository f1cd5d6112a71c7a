"""Loggers besides TensorBoard's: Weights & Biases, MLflow, Aim, and what every logger is given.

| logger | a run's name | a sweep's group | `tags` | settings | final figures |
|---|---|---|---|---|---|
| `wandb` | name of the run | `group` | tags | `config` | `summary`: `result/test/accuracy` |
| `mlflow` | run name | tag `sweep` | tag `tags` | parameters | metrics: `result/test/accuracy` |
| `aim` | run name | `sweep` | tags | `hparams` | metrics: `result/test/accuracy` |
| `csv` | its folder | its folder | `hparams.yaml` | `hparams.yaml` | last row: `result/test/accuracy` |

Several at once: `logger=[csv,tensorboard,mlflow]`, Hydra's way to choose several options of a group.

A resumed run goes on in the same entry of W&B, MLflow and Aim. To add a logger, add a function that builds it here, a
file in `conf/logger`, and its name to `recur.runs.trust.RUN`.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from recur.cli import rank
from recur.runs.extras import lacks
from recur.runs.files import write_atomic
from recur.runs.journal import NAME as SWEEP
from recur.runs.marks import read_mark

WANDB_ID, MLFLOW_ID, AIM_ID = "wandb_run_id.txt", "mlflow_run_id.txt", "aim_run_hash.txt"  # see runs.folder.WRITTEN
_LONGEST_VALUE = 500  # characters of a parameter, as MLflow takes them


# Whether the run goes on. Loggers are built by the config, which does not know; a new run that overwrites another one
# would else go on in that one's entry.
_resumed: ContextVar[bool] = ContextVar("resumed", default=False)


@contextlib.contextmanager
def of_a_run(*, resumed: bool) -> Iterator[None]:
    """Build loggers that go on in a run's entries, or that begin new ones."""
    token = _resumed.set(resumed)
    try:
        yield
    finally:
        _resumed.reset(token)


def _known_id(folder: Path, name: str) -> str | None:
    """The entry in which a resumed run goes on, None for a new one."""
    place = folder / name
    return place.read_text(encoding="utf-8").strip() if _resumed.get() and place.is_file() else None


def _sweep_folder(folder: Path) -> Path | None:
    """The sweep that a run belongs to, which `hydra.sweep.subdir` may put two folders above it."""
    if read_mark(folder) is None:
        return None
    above = folder.resolve().parents[:2]
    return next((place for place in above if (place / SWEEP).is_file()), above[0])


def sweep_of(folder: Path) -> str | None:
    """The name of the sweep that a run belongs to; None for a run of its own."""
    sweep = _sweep_folder(folder)
    return None if sweep is None else sweep.name


def run_name(folder: Path, name: str) -> str:
    """`lm 2026-01-31_12-00-00`, or `lm SWEEP 3`: the run's name and what tells it from others of that name."""
    sweep, place = _sweep_folder(folder), folder.resolve()
    return f"{name} {place.name}" if sweep is None else f"{name} {sweep.name} {place.relative_to(sweep)}"


def wandb(
    folder: str,
    name: str,
    tags: Sequence[str] = (),
    project: str = "recur",
    entity: str | None = None,
    offline: bool = False,
    log_model: bool = False,
) -> Logger:
    """A logger for Weights & Biases.

    Args:
        folder: of the run; W&B writes its files below it.
        name: of the run, to which what tells it from others is added.
        tags: words by which the run is found again.
        project: of W&B.
        entity: user or team that has the project; None for W&B's default.
        offline: keep everything in the folder; `wandb sync` sends it later.
        log_model: send the checkpoints too.

    Raises:
        UserError: the extra is missing.
    """
    place = Path(folder)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing is sent but what is asked for
    known = _known_id(place, WANDB_ID)
    if known is None:  # a run that goes on without its id is of a version that had this one
        known = hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:16] if _resumed.get() else uuid4().hex[:16]
    try:
        return WandbLogger(
            name=run_name(place, name),
            save_dir=folder,
            project=project,
            entity=entity,
            group=sweep_of(place),
            tags=[str(tag) for tag in tags] or None,
            offline=offline,
            log_model=log_model,
            id=known,
            resume="allow",
        )
    except ModuleNotFoundError as error:
        raise lacks("wandb", error.name or "wandb", "logger=wandb") from None


def show_image(loggers: Sequence[Logger], name: str, image: NDArray[np.uint8], step: int) -> None:
    """Give an image, `(height, width, 3)`, to the loggers that show it beside their curves: W&B's."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step=step)


def mlflow(
    folder: str, name: str, tags: Sequence[str] = (), experiment: str = "recur", tracking_uri: str | None = None
) -> Logger:
    """A logger for MLflow.

    Args:
        folder: of the run.
        name: of the run, to which what tells it from others is added.
        tags: words by which the run is found again, in one tag `tags`: MLflow's have names and values.
        experiment: of MLflow.
        tracking_uri: server or database; None for what `MLFLOW_TRACKING_URI` says, else a database in the run's folder.

    Raises:
        UserError: the extra is missing.
    """
    place = Path(folder)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent but what is asked for
    sweep = sweep_of(place)
    own = {"sweep": sweep or "", "tags": ", ".join(map(str, tags))}
    database = f"sqlite:///{place.resolve() / 'mlflow.db'}"
    try:
        return MLFlowLogger(
            experiment_name=experiment,
            run_name=run_name(place, name),
            tracking_uri=tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or database,
            tags={key: value for key, value in own.items() if value} or None,
            run_id=_known_id(place, MLFLOW_ID),
        )
    except ModuleNotFoundError as error:
        raise lacks("mlflow", error.name or "mlflow", "logger=mlflow") from None


def aim(folder: str, name: str, tags: Sequence[str] = (), experiment: str = "recur", repo: str | None = None) -> Logger:
    """A logger for Aim, which gets nothing of the machine, its environment and what the terminal shows.

    Args:
        folder: of the run.
        name: of the run, to which what tells it from others is added.
        tags: words by which the run is found again.
        experiment: of Aim.
        repo: folder or server; None for the run's folder, where `aim up --repo RUN` finds it.

    Raises:
        UserError: the extra is missing.
    """
    place = Path(folder)
    try:
        from aim.pytorch_lightning import AimLogger
    except ModuleNotFoundError as error:
        raise lacks("aim", error.name or "aim", "logger=aim") from None
    known = _known_id(place, AIM_ID)
    logger: Any = AimLogger(
        repo=repo or str(place.resolve()),
        experiment=experiment,
        run_name=run_name(place, name),
        run_hash=known,
        system_tracking_interval=None,
        log_system_params=False,
        capture_terminal_logs=False,
    )
    if rank() == 0:
        entry = logger.experiment
        if known is None:
            for tag in tags:
                entry.add_tag(str(tag))
        if sweep := sweep_of(place):
            entry["sweep"] = sweep
    return logger


def log_settings(loggers: list[Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Give every logger but TensorBoard's, which gets them its own way, the run's settings.

    Args:
        loggers: of the trainer.
        settings: by their paths, such as `optimizer.lr`.
        folder: of the run.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            continue
        plain = dict(settings)
        if isinstance(logger, MLFlowLogger):
            plain = {key: str(value)[:_LONGEST_VALUE] for key, value in plain.items()}
            if (folder / MLFLOW_ID).is_file():  # a resumed run: MLflow refuses a parameter that has changed
                plain = {}
        logger.log_hyperparams(plain)
        if type(logger).__name__ == "AimLogger":  # whose class cannot be named where its package is missing
            write_atomic(folder / AIM_ID, f"{logger.version}\n")
        if isinstance(logger, MLFlowLogger):
            write_atomic(folder / MLFLOW_ID, f"{logger.run_id}\n")
        if isinstance(logger, WandbLogger):
            write_atomic(folder / WANDB_ID, f"{logger.version}\n")
            _remove_links(folder / "wandb")


def log_results(loggers: list[Any], results: Mapping[str, Mapping[str, float]], step: int) -> None:
    """Give every logger but TensorBoard's, which gets them its own way, the final figures.

    Args:
        loggers: of the trainer.
        results: by split and name.
        step: the last one.
    """
    figures = {f"result/{split}/{name}": value for split, values in results.items() for name, value in values.items()}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            continue
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(figures)
        else:
            logger.log_metrics(figures, step)
        if isinstance(logger, CSVLogger):
            logger.save()
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
            _remove_links(Path(logger.save_dir or ".") / "wandb")


@contextlib.contextmanager
def ended_on_error() -> Iterator[None]:
    """End the entry of W&B of a run that fails or is stopped: the next run of this process would go on in it."""

    def open_entry() -> Any:
        return getattr(sys.modules.get("wandb"), "run", None)  # not imported where no run logs there

    before = open_entry()
    try:
        yield
    except BaseException:
        entry = open_entry()
        if entry is not None and entry is not before:
            entry.finish(exit_code=1)
        raise


def _remove_links(folder: Path) -> None:
    """Remove W&B's links to its logs elsewhere: a run's folder may hold no link out of it, or it cannot be resumed."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()
