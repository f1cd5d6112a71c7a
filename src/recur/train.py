"""The door to training: `python -m recur.train [overrides]`, alone or, with `-m`, as a sweep.

Reads top to bottom: compose, build data, model and trainer, fit, score the best checkpoint, report.
"""

import sys
import time
from pathlib import Path
from typing import Any

from recur import cli
from recur.config.compose import _check_flags, _claim, _resume_with_own_config, _started_again_by_slurm, build, conf_dir
from recur.runs import trust


def main() -> None:
    """Entry point of `python -m recur.train` and `recur-train`."""
    import os

    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach cli.guard, which tells them in one line
    cli.guard(lambda: _check_flags(sys.argv))
    cli.guard(lambda: _started_again_by_slurm(sys.argv))
    cli.guard(lambda: _resume_with_own_config(sys.argv))
    cli.guard(lambda: _claim(sys.argv))
    door = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(_job)
    cli.guard(door)


def _job(cfg: Any) -> float | None:
    """One run. Returns the monitored metric's best value, which sweeps compare."""
    from recur.training import failures as stopping

    try:
        return _run(cfg)
    except stopping.Stopped as stop:
        raise SystemExit(stopping.leave(stop, _folder())) from None
    except Exception as error:  # here and not in guard: Hydra would print a line of its own first
        message = cli.explain(error)
        import os

        if message is None or os.environ.get("RECUR_DEBUG") == "1":
            raise
        cli.fail(message)


def _folder() -> Path:
    """The run's folder."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def _run(cfg: Any) -> float | None:
    import lightning.pytorch as pl
    import torch
    from hydra.core.hydra_config import HydraConfig
    from lightning.pytorch.callbacks import LearningRateMonitor
    from omegaconf import OmegaConf

    from recur.cli import rank, tell
    from recur.config import schema
    from recur.runs import checkpoint as checkpoints
    from recur.runs.files import write_atomic
    from recur.runs.run import claim
    from recur.training import checkpointing as recovery
    from recur.training import failures as finite
    from recur.training import failures as stopping
    from recur.training import report
    from recur.training.callbacks import PlannedNoise, Throughput, ValidationLog
    from recur.training.checkpointing import LastCheckpoint, SelfContained
    from recur.training.failures import explained
    from recur.training.tensorboard import announce_hparams

    started = time.time()
    stop = stopping.Stop()
    stop.listen()
    folder = _folder()
    claim(folder)
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if cfg.resume:  # then the config is the folder's; before anything that it names is so much as imported
        trust.check_config(config, HydraConfig.get().overrides.task, folder=folder)
    report.quiet()
    if not (isinstance(cfg.seed, int) and 0 <= cfg.seed < 2**32):
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {cfg.seed}")
    settings = {key: value for key, value in config["trainer"].items() if key != "precision"}
    settings["default_root_dir"] = settings.get("default_root_dir") or str(folder)  # Lightning's is where it is typed
    schema.check({**config, "trainer": settings}, "")
    schema.dry_run(config)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    last = None
    if cfg.resume:
        last, trouble = checkpoints.to_resume(folder)
        if trouble and rank() == 0:
            tell(f"warning: {trouble}")
    if rank() == 0:
        recovery.rewind(folder, last)
    data = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    told = data.model_arguments()
    task = build(cfg.model, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler), **told)
    plain_told = {key: value for key, value in told.items() if not isinstance(value, torch.Tensor)}
    callbacks = [built for node in cfg.callbacks.values() if (built := build(node)) is not None]
    callbacks.append(SelfContained(config, data.tokenizer.to_json(), plain_told))
    callbacks += [PlannedNoise(cfg.seed), ValidationLog(folder)]
    pruning = _pruning(folder, cfg.monitor)
    callbacks += [pruning] if pruning is not None else []
    loggers = [build(node) for node in cfg.logger.values()]
    if not loggers:  # nobody to tell the learning rate
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    precision = report.precision(cfg.trainer.precision, cfg.trainer.accelerator)
    plugins = [recovery.Files(), *build(settings.pop("plugins", None) or [])]
    trainer = build(
        {**settings, "_partial_": True}, precision=precision, callbacks=callbacks, logger=loggers, plugins=plugins
    )
    # First of all, since an average of weights replaces them at the end of training, and last.ckpt wants them.
    trainer.callbacks.sort(key=lambda callback: not isinstance(callback, LastCheckpoint))
    for callback in trainer.callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.stop = stop

    if trainer.is_global_zero:
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        if cfg.resume:  # written beside .hydra, where nothing may lie that Hydra did not write
            write_atomic(folder / ".hydra.config.yaml", OmegaConf.to_yaml(cfg))
            (folder / ".hydra.config.yaml").replace(folder / ".hydra" / "config.yaml")
        write_atomic(folder / "tokenizer.json", data.tokenizer.to_json())
        report.opening(folder, data, task, trainer)
        announce_hparams(trainer.loggers, config, task.family)

    watch = next((callback for callback in callbacks if isinstance(callback, finite.Finite)), None)
    with explained(trainer, watch):
        results, score = _fit_and_score(cfg, trainer, task, data, last, pruning)

    if trainer.is_global_zero:
        speed = next((c for c in callbacks if isinstance(c, Throughput)), None)
        report.closing(folder, cfg, data, task, trainer, results, speed, time.time() - started, _pruned(pruning))
    return score


def _pruning(folder: Path, monitor: str) -> Any:
    """The callback that stops a hopeless trial, in a job of a study; None in any other run, which imports no sweep."""
    import os

    if "RECUR_TRIAL" not in os.environ:  # `recur.sweeps.job.TRIAL`
        return None
    from recur.sweeps.study import Pruning

    return Pruning(folder, monitor)


def _pruned(pruning: Any) -> bool:
    return pruning is not None and bool(pruning.pruned)


def _fit_and_score(
    cfg: Any, trainer: Any, task: Any, data: Any, last: Path | None, pruning: Any
) -> tuple[dict[str, dict[str, float]], float | None]:
    """Train, then score the best checkpoint; gives the figures, and the monitored metric's best value."""
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

    from recur.runs.run import load_checkpoint
    from recur.training import report

    trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)

    best = next((c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)), None)
    score = None if best is None or best.best_model_score is None else float(best.best_model_score)
    results = {"val": report.metrics_of(trainer, "val/")}
    if best is not None and best.best_model_path and not _pruned(pruning):
        # By hand: restoring through the trainer would bring back the raw weights beside an average's.
        task.load_state_dict(load_checkpoint(Path(best.best_model_path))["state_dict"])
        # And without the averaging, which would validate the last average in place of what was loaded.
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
        trainer.validate(task, datamodule=data, verbose=False, weights_only=True)
        results["val"] = report.metrics_of(trainer, "val/")
    if cfg.test and data.has_test and not _pruned(pruning):
        trainer.test(task, datamodule=data, verbose=False, weights_only=True)
        results["test"] = report.metrics_of(trainer, "test/")
    return results, score


if __name__ == "__main__":
    main()
