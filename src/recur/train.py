"""The command that trains: `python -m recur.train [overrides]`, one run or, with `-m`, a sweep.

It composes the config, checks it, looks at the run's folder, builds data, task and trainer, and only then begins to
write. A mistake is refused before anything is changed.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recur import cli

if TYPE_CHECKING:
    from recur.config.compose import CommandLine, Composed
    from recur.training.failures import Stop


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m recur.train` and `recur-train`."""
    cli.guard(lambda: _main(sys.argv[1:] if argv is None else list(argv)))


def _main(words: Sequence[str]) -> None:
    from recur.config.compose import command_line, compose_run

    line = command_line(words)
    if line.hydra:
        _hydra(line)
    else:
        _run(compose_run(line))


def _hydra(line: "CommandLine") -> None:
    """A sweep, the help, the composed config: what Hydra does by itself."""
    import hydra

    from recur.config.compose import conf_dir, translated
    from recur.errors import UserError

    def task(cfg: Any) -> None:  # with another launcher or sweeper than ours
        raise UserError("hydra/launcher", rule="must be slots, ray or submitit_slurm, which run every job by itself")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach cli.guard
    sys.argv[1:] = line.words
    with translated(conf_dir(), line.config_name, line.overrides):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)()


def _run(composed: "Composed") -> None:
    """One run, from its config to its results."""
    from recur.config import schema
    from recur.training import failures, report
    from recur.training.fit import train
    from recur.training.run_files import begin, take_up

    failures.leave_with_launcher()
    stop = failures.Stop()
    stop.listen()
    report.quiet()
    schema.check_run(composed.config, composed.used)
    try:
        checkpoint = take_up(composed)
        data = _data(composed, checkpoint)
        task = _task(composed.config, data)
        callbacks, pruning = _callbacks(composed, data, stop)
        trainer = _trainer(composed.config, callbacks)
        begin(composed, data, task, trainer, checkpoint)
        trained = train(
            data,
            task,
            trainer,
            checkpoint=checkpoint,
            test=composed.config["test"],
            called_off=lambda: pruning is not None and pruning.pruned,
        )
    except failures.Stopped as stopped:
        raise SystemExit(failures.leave(stopped, composed.folder)) from None
    if trainer.is_global_zero:
        pruned = pruning is not None and pruning.pruned
        report.closing(composed.folder, composed.config, data, task, trainer, trained.results, pruned=pruned)


def _data(composed: "Composed", checkpoint: Path | None) -> Any:
    """The data, set up; that of a resumed run with its own vocabulary, and compared with what it was.

    Raises:
        UserError: the data cannot be read, or has changed.
    """
    import lightning.pytorch as pl

    from recur.config.compose import build
    from recur.runs import fingerprint
    from recur.runs.run import load_checkpoint

    pl.seed_everything(composed.config["seed"], workers=True, verbose=False)
    data = build(composed.config["data"], "data")
    data.prepare_data()
    data.setup("fit")
    if checkpoint is not None:
        before = load_checkpoint(checkpoint)["recur"]["fingerprint"]
        now = fingerprint.fingerprint(data)
        if before != now and composed.config["accept_data_change"]:
            return _data_of_before(composed, checkpoint)
        fingerprint.compare(before, now, str(composed.folder))
    return data


def _data_of_before(composed: "Composed", checkpoint: Path) -> Any:
    """Other data than the run began with, read with the run's vocabulary and classes."""
    from recur.config.compose import build
    from recur.data.text import Tokenizer
    from recur.runs.run import load_checkpoint

    own = load_checkpoint(checkpoint)["recur"]
    data = build(composed.config["data"], "data")
    names = [own["data"]["class_names"]] if "class_names" in own["data"] else []
    data.use(Tokenizer.from_json(own["tokenizer"]), *names)
    data.prepare_data()
    data.setup("fit")
    return data


def _task(config: dict[str, Any], data: Any) -> Any:
    from recur.config.compose import build

    parts = {group: build(config[group], group) for group in ("optimizer", "scheduler")}
    return build(config["model"], "model", **parts, **data.model_arguments())


def _callbacks(composed: "Composed", data: Any, stop: "Stop") -> tuple[list[Any], Any]:
    """The callbacks of the config and those that every run has; and among them the one that prunes, in a study."""
    import torch

    from recur.config.compose import build
    from recur.runs.build import Part
    from recur.runs.fingerprint import fingerprint
    from recur.training.callbacks import PlannedNoise, ValidationLog
    from recur.training.checkpointing import SelfContained

    config = composed.config
    built = [build(node, f"callbacks.{name}") for name, node in config["callbacks"].items()]
    built = [part(stop=stop) if isinstance(part, Part) else part for part in built if part is not None]
    described = {key: v for key, v in data.model_arguments().items() if not isinstance(v, torch.Tensor)}
    content = SelfContained(composed.record(), data.tokenizer.to_json(), described, fingerprint(data))
    pruning = _pruning(composed.folder, config["monitor"])
    own = [content, PlannedNoise(config["seed"]), ValidationLog(composed.folder)]
    return [*built, *own, *([] if pruning is None else [pruning])], pruning


def _pruning(folder: Path, monitor: str) -> Any:
    """The callback that stops a hopeless trial, in a job of a study; None in any other run, which imports no sweep."""
    if "RECUR_TRIAL" not in os.environ:  # `recur.sweeps.job.TRIAL`
        return None
    from recur.sweeps.study import Pruning

    return Pruning(folder, monitor)


def _trainer(config: dict[str, Any], callbacks: list[Any]) -> Any:
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

    from recur.config.compose import build
    from recur.training import report
    from recur.training.checkpointing import Files

    settings = dict(config["trainer"])
    loggers = [build(node, f"logger.{name}") for name, node in config["logger"].items()]
    if not loggers:  # which it would complain about
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    settings["precision"] = report.precision(settings["precision"], settings["accelerator"])
    best = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings["enable_checkpointing"] = best  # else Lightning would add one
    plugins = [Files(), *build(settings.pop("plugins", None) or [], "trainer.plugins")]
    return build(
        {**settings, "_partial_": True}, "trainer", callbacks=callbacks, logger=loggers or False, plugins=plugins
    )


if __name__ == "__main__":
    main()
