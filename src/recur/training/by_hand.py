"""A config for what was built by hand, so that its checkpoints stand alone like those of a command's run.

A task and a data module remember what they were given (`recur.nn.arguments.Remembering`); written down it is the config
from which `recur.load` builds the network again.
"""

import functools
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from recur.data.sources import absolute_paths
from recur.data.tables import as_file, is_table
from recur.errors import UserError
from recur.nn.arguments import Remembering
from recur.runs import fingerprint
from recur.runs.build import Part
from recur.training.checkpointing import Files, SelfContained


def complete(data: Any, task: pl.LightningModule, trainer: pl.Trainer) -> None:
    """Let a trainer write checkpoints that stand alone, where its callbacks do not see to that already.

    Args:
        data: set up.
        task: of its family.
        trainer: that is about to train; one without a `ModelCheckpoint` writes none and stays as it is.

    Raises:
        UserError: the task or its network has no name by which it could be built again.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if not isinstance(trainer.strategy.checkpoint_io, Files):
        trainer.strategy.checkpoint_io = Files()
    if any(isinstance(callback, SelfContained) for callback in callbacks):
        return
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        return
    described = {key: value for key, value in data.model_arguments().items() if not isinstance(value, torch.Tensor)}
    config = config_of(data, task, trainer)
    callbacks.insert(0, SelfContained(config, data.tokenizer.to_json(), described, fingerprint.fingerprint(data)))


def config_of(data: Any, task: Any, trainer: pl.Trainer) -> dict[str, Any]:
    """The config of a run, as far as objects tell it; see `complete`."""
    model = written(task, "model")
    if "net" not in model:
        rule = "is no argument with which the task was made, and its checkpoints could not build it again"
        raise UserError("model.net", rule=rule, remedy="let the task's class take net and give it by name")
    for known in data.model_arguments():  # the checkpoint has them beside the config
        model.pop(known, None)
    parts = {name: model.pop(name, None) or {} for name in ("optimizer", "scheduler")}
    best = trainer.checkpoint_callback
    return {
        "name": Path(trainer.default_root_dir).name,
        "monitor": getattr(best, "monitor", None) or "",
        "mode": getattr(best, "mode", "min"),
        "model": model,
        "data": absolute_paths(written(data, "data")),
        "trainer": {"max_epochs": trainer.max_epochs, "precision": str(trainer.precision)},
        **parts,
    }


def written(value: Any, key: str) -> Any:
    """Plain containers from which `recur.runs.build.build` makes the same.

    Args:
        value: a plain value, a class or function, a `functools.partial` of one, or what remembers its arguments.
        key: where it stands, for the message.

    Raises:
        UserError: it has no name, or was made with something that has none.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_table(value):
        return as_file(value, key)
    if isinstance(value, Mapping):
        return {name: written(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(inner, f"{key}[{place}]") for place, inner in enumerate(value)]
    if isinstance(value, functools.partial):
        return _call(value.func, value.args, value.keywords, key) | {"_partial_": True}
    if isinstance(value, Part):
        return _call(value.called, value.positional, value.arguments, key) | {"_partial_": True}
    if isinstance(value, Remembering):
        given = {name: inner for name, inner in value.given.items() if not isinstance(inner, torch.Tensor)}
        return _call(type(value), (), given, key)
    if hasattr(value, "sizes") and hasattr(value, "split"):  # a corpus that is made, not read
        return _call(type(value), (), _settings(value), key)
    if inspect.isclass(value) or inspect.isfunction(value):
        return _call(value, (), {}, key) | {"_partial_": True}
    raise UserError(key, type(value).__name__, "must be a plain value, or a class or function by its name")


def _call(called: Any, positional: tuple[Any, ...], named: Mapping[str, Any], key: str) -> dict[str, Any]:
    module, name = getattr(called, "__module__", None), getattr(called, "__qualname__", "<nameless>")
    if module in (None, "__main__") or "<" in name:
        remedy = "give a class or function of a module, or a functools.partial of one: its checkpoints name it"
        raise UserError(key, name, "must have a name under which it can be imported again", remedy)
    arguments = {name: written(value, f"{key}.{name}") for name, value in named.items()}
    if positional:
        arguments["_args_"] = [written(value, key) for value in positional]
    return {"_target_": f"{module}.{name}", **arguments}


def _settings(corpus: Any) -> dict[str, Any]:
    """The settings of a corpus, which it keeps under their names, and its sizes."""
    sizes = {f"{split}_size": size for split, size in corpus.sizes.items()}
    names = [name for name in inspect.signature(type(corpus)).parameters if name not in sizes]
    return sizes | {name: getattr(corpus, name) for name in names}
