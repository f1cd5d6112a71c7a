"""Composing and training from Python: `recur.compose` and `recur.fit`."""

import os
import random
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from recur import cli
from recur.config.compose import Composed, command_line, compose_run, hydra_as_before
from recur.config.words import as_value
from recur.data.tables import as_file, is_table
from recur.errors import UserError
from recur.inference.run import Run, load
from recur.runs import run as runs
from recur.runs.trust import check_targets
from recur.training import start
from recur.training.failures import HEARD, Stop
from recur.training.loggers import ended_on_error
from recur.training.report import logging_as_before

Overrides = Sequence[str] | Mapping[str, Any]
_TRAINING = threading.Lock()  # held by a `fit`: random numbers, logging and Hydra are the whole process's


def compose(overrides: Overrides = ()) -> dict[str, Any]:
    """The config of a run, resolved, as `python -m recur.train OVERRIDES --cfg job` shows it.

    Args:
        overrides: `["model=awd_lstm", "optimizer.lr=1e-3"]`, or `{"model": "awd_lstm", "optimizer.lr": 1e-3}`; in the
            latter a pandas DataFrame or `datasets.Dataset` may stand for a file, as in
            `{"data": "files", "data.train": frame}`.

    Raises:
        UserError: it cannot be composed.
    """
    with hydra_as_before():
        return compose_run(command_line(words(overrides))).config


def fit(overrides: Overrides = (), *, trust: str | Sequence[str] = ()) -> Run:
    """Train one run in this process, as `python -m recur.train OVERRIDES` does, and open it.

    The process's random numbers, logging, signals and Hydra are left as they were.

    Ctrl-C ends it after the step, saved, with the exception `recur.training.failures.Stopped`. The name is `fit`, as in
    Lightning: `recur.train` is the module of the command.

    Args:
        overrides: as in `compose`; `resume=RUN` goes on with a run.
        trust: one or more packages of your own whose classes the model may name, as in `recur.load`.

    Returns:
        the run with its best weights.

    Raises:
        UserError: a mistake in the overrides or the data, or another `fit` is under way in this process; nothing has
            been changed then.
    """
    cli.trust([trust] if isinstance(trust, str) else trust, "trust")
    line = command_line(words(overrides))
    if line.hydra:
        raise UserError("overrides", list(line.words), "must describe one run", "sweeps are started by the command")
    with _alone(), hydra_as_before(), _random_numbers_as_before():
        composed = _in_one_process(compose_run(line))
        _check_opening(composed.config)
        with _signals_as_before(), logging_as_before(), ended_on_error():
            stop = Stop()
            stop.listen()
            try:
                start.run(composed, stop)
            finally:
                runs.release(composed.folder)
        return load(composed.folder)  # whose weights are drawn before they are read


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a `fit` beside or within another one.

    Raises:
        UserError: there is one.
    """
    if not _TRAINING.acquire(blocking=False):
        remedy = "wait for the other one, or start this one by the command, python -m recur.train OVERRIDES"
        raise UserError("fit", rule="trains one run at a time in a process, and another is under way", remedy=remedy)
    try:
        yield
    finally:
        _TRAINING.release()


def _in_one_process(composed: Composed) -> Composed:
    """A config that trains in this process alone, unless a launcher has started it once for each device.

    Lightning would start this script anew for each of the others, which the script was hardly written for.

    Raises:
        UserError: it asks for several.
    """
    several = any(int(os.environ.get(key) or 1) > 1 for key in ("WORLD_SIZE", "SLURM_NTASKS"))
    if "LOCAL_RANK" in os.environ or several:
        return composed
    trainer = composed.config.get("trainer")
    if not isinstance(trainer, Mapping):
        return composed  # the schema says what must be there, and of what type
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", 1)
    if not isinstance(nodes, int) or not isinstance(devices, (int, str, list, tuple, type(None))):
        return composed
    if devices in ("auto", -1, "-1", None):
        return composed.changed("trainer.devices", 1) if torch.cuda.device_count() > 1 else composed
    if isinstance(devices, str):  # "2" is a number of them, "0,1" names two
        devices = int(devices) if devices.isdecimal() else devices.split(",")
    if nodes > 1 or (devices if isinstance(devices, int) else len(devices)) > 1:
        key, value = ("trainer.num_nodes", nodes) if nodes > 1 else ("trainer.devices", devices)
        remedy = "several are started by the command, python -m recur.train OVERRIDES, or by torchrun"
        raise UserError(key, value, "must be one process: `fit` trains in this one", remedy)
    return composed


def _check_opening(config: Mapping[str, Any]) -> None:
    """Refuse a run that could not be opened after hours of training.

    Raises:
        UserError: its model is of a package that is not trusted, or it trains nothing.
    """
    if config.get("find_lr"):
        rule = "prints a learning rate and leaves no run"
        raise UserError("find_lr", True, rule, "python -m recur.train OVERRIDES find_lr=true does it")
    try:
        check_targets(config.get("model"), "model")
    except UserError as error:
        named = re.sub(r"--trust (\w+)", r'trust="\1"', error.remedy)
        raise UserError(error.key, rule=error.rule, remedy=named or "name a class of a module of yours") from None


def words(overrides: Overrides) -> list[str]:
    """Overrides as they are typed; a value of a mapping as Hydra's grammar writes it."""
    if isinstance(overrides, str):
        raise TypeError("overrides are several words: give a list")
    if isinstance(overrides, Mapping):
        return [f"{key}={as_value(_with_files(value, key))}" for key, value in overrides.items()]
    return list(overrides)


def _with_files(value: Any, key: str) -> Any:
    """A value with a file in the place of each table."""
    if is_table(value):
        return as_file(value, key)
    return [_with_files(inner, key) for inner in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Give the signals back, which a run takes over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in HEARD}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _random_numbers_as_before() -> Iterator[None]:
    """Give the random numbers back, which a run seeds, and the variables by which other processes go on like it."""
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "RECUR_PRECISION")
    variables = {name: os.environ.get(name) for name in names}
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 (the one that is seeded)
    used, waiting = torch.cuda.is_initialized(), torch.initial_seed()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if used else ()):
            yield
    finally:
        if not used:  # CUDA, first used in the run or later, begins with the seed that was given last
            torch.cuda.manual_seed_all(waiting)
        random.setstate(plain)
        np.random.set_state(arrays)  # noqa: NPY002
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
