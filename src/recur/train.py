"""The door to training: `python -m recur.train [overrides]`, alone or, with `-m`, as a sweep.

Reads top to bottom: compose, build data, model and trainer, fit, score the best checkpoint, report.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recur import cli, trust


def main() -> None:
    """Entry point of `python -m recur.train` and `recur-train`."""
    import os

    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach cli.guard, which tells them in one line
    cli.guard(lambda: _check_flags(sys.argv))
    cli.guard(lambda: _started_again_by_slurm(sys.argv))
    cli.guard(lambda: _resume_with_own_config(sys.argv))
    cli.guard(lambda: _claim(sys.argv))
    door = hydra.main(version_base="1.3", config_path=str(cli.conf_dir()), config_name="train")(_job)
    cli.guard(door)


def _check_flags(argv: list[str]) -> None:
    """Say in one line what Hydra would say in many."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = lambda message: cli.mistyped(parser, message, "recur.train")  # type: ignore[method-assign]
    parser.parse_args(argv[1:])


def _started_again_by_slurm(argv: list[str]) -> None:
    """Go on with the run that this same command began, in the folder it names, before SLURM requeued the job."""
    import os

    folder = _named_folder(argv)
    again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0 and not any(w.startswith("resume=") for w in argv)
    if folder is not None and again and (folder / "checkpoints" / "last.ckpt").is_file():
        argv[1:] = [f"resume={folder}"]


def _named_folder(argv: list[str]) -> Path | None:
    """The folder a single run is told to use."""
    if {"-m", "--multirun", "-c", "--cfg", "-h", "--help", "-i", "--info"} & set(argv):
        return None
    named = [word.partition("=")[2].strip("'\"") for word in argv[1:] if word.startswith("hydra.run.dir=")]
    return Path(named[-1]).expanduser() if named and "$" not in named[-1] else None


def _claim(argv: list[str]) -> None:
    """Hold the folder before Hydra writes into it, where another process may be at work there."""
    folder = _named_folder(argv)
    if folder is not None and folder.is_dir():
        from recur.runs import claim

        claim(folder)


def _resume_with_own_config(argv: list[str]) -> None:
    """Put `resume=RUN` into effect: compose from the run's own config and work in its folder.

    Lightning's DDP starts its other ranks with this same command line, so it is left as it is once it names the run.
    """
    given = [word.partition("=")[2].strip("'\"") for word in argv[1:] if word.startswith("resume=")]
    if not given or given[-1] in ("", "null") or "--config-path" in argv:
        return
    if "-m" in argv or "--multirun" in argv:  # a sweep, which its sweeper resumes; alone it repeats its own command
        more = [word for word in argv[1:] if word not in ("-m", "--multirun") and not word.startswith("resume=")]
        if all(word.startswith(("hydra.launcher.", "hydra/launcher=")) for word in more):
            from recur.sweeps.launcher import recorded_arguments

            recorded = trust.check_arguments(recorded_arguments(given[-1]), given[-1])
            argv[1:] = [*recorded, *more, f"resume={given[-1]}"]
        return
    folder = Path(given[-1]).expanduser().resolve()
    if not (folder / ".hydra" / "config.yaml").is_file():
        cli.fail(f"cannot resume {given[-1]}: it is not a run folder (it has no .hydra/config.yaml)")
    if not any((folder / "checkpoints" / name).is_file() for name in ("last.ckpt", "last.previous.ckpt")):
        cli.fail(f"cannot resume {given[-1]}: it has no checkpoints/last.ckpt yet; start it again")
    trust.check_run_folder(folder, argv[1:])
    argv[1:1] = ["--config-path", str(folder / ".hydra"), "--config-name", "config", f"hydra.run.dir={folder}"]
    argv.append("hydra.output_subdir=null")  # Hydra would empty the file before it writes it, and other ranks read it
    argv.append("hydra.job_logging.formatters.simple.format='%(message)s'")  # conf/train.yaml is not read
    if not any(word.startswith("name=") for word in argv):
        argv += _recorded_name(folder)


def _recorded_name(folder: Path) -> list[str]:
    """A run's name: it was made of the groups chosen then, and there is nothing to choose from now."""
    import re

    import yaml

    try:
        name = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return []
    return [f"name={name}"] if isinstance(name, str) and re.fullmatch(r"[\w./-]+", name) else []


def _job(cfg: Any) -> float | None:
    """One run. Returns the monitored metric's best value, which sweeps compare."""
    from recur import stopping

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


def build(node: Any, **arguments: Any) -> Any:
    """Instantiate a config group; a key its class does not know is the user's mistake.

    Raises:
        ValueError: the class refused an argument.
    """
    from hydra.utils import instantiate

    try:
        built = instantiate(node, _convert_="all")
        return built(**arguments) if arguments else built
    except TypeError as error:
        raise ValueError(f"{node.get('_target_')}: {error}") from error


def _run(cfg: Any) -> float | None:
    import lightning.pytorch as pl
    import torch
    from hydra.core.hydra_config import HydraConfig
    from lightning.pytorch.callbacks import LearningRateMonitor
    from omegaconf import OmegaConf

    from recur import checkpoints, finite, recovery, report, schema, stopping
    from recur.callbacks import LastCheckpoint, PlannedNoise, SelfContained, Throughput
    from recur.runs import claim, write_atomic
    from recur.sweeps.validation_log import ValidationLog

    started = time.time()
    stop = stopping.Stop()
    stop.listen()
    folder = _folder()
    claim(folder)
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if cfg.resume:  # then the config is the folder's; before anything that it names is so much as imported
        trust.check_config(config, HydraConfig.get().overrides.task)
    report.quiet()
    if not (isinstance(cfg.seed, int) and 0 <= cfg.seed < 2**32):
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {cfg.seed}")
    settings = {key: value for key, value in config["trainer"].items() if key != "precision"}
    schema.check({**config, "trainer": settings}, "")
    schema.dry_run(config)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    last = None
    if cfg.resume:
        last, trouble = checkpoints.to_resume(folder)
        if trouble and stopping.rank() == 0:
            stopping.tell(f"warning: {trouble}")
    if stopping.rank() == 0:
        recovery.rewind(folder, last)
    data = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    told = data.model_arguments()
    task = build(cfg.model, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler), **told)
    plain_told = {key: value for key, value in told.items() if not isinstance(value, torch.Tensor)}
    callbacks = [built for node in cfg.callbacks.values() if (built := build(node)) is not None]
    callbacks.append(SelfContained(config, data.tokenizer.to_json(), plain_told))
    validation_log = ValidationLog(folder, cfg.monitor)
    callbacks += [PlannedNoise(cfg.seed), validation_log]
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
        report.announce_hparams(trainer.loggers, config, task.family)

    watch = next((callback for callback in callbacks if isinstance(callback, finite.Finite)), None)
    with _explained(trainer, watch):
        results, score = _fit_and_score(cfg, trainer, task, data, last, validation_log)

    if trainer.is_global_zero:
        speed = next((c for c in callbacks if isinstance(c, Throughput)), None)
        report.closing(folder, cfg, data, task, trainer, results, speed, time.time() - started, validation_log.pruned)
    return score


def _fit_and_score(
    cfg: Any, trainer: Any, task: Any, data: Any, last: Path | None, validation_log: Any
) -> tuple[dict[str, dict[str, float]], float | None]:
    """Train, then score the best checkpoint; gives the figures, and the monitored metric's best value."""
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

    from recur import report
    from recur.runs import load_checkpoint

    trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)

    best = next((c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)), None)
    score = None if best is None or best.best_model_score is None else float(best.best_model_score)
    results = {"val": report.metrics_of(trainer, "val/")}
    if best is not None and best.best_model_path and not validation_log.pruned:
        # By hand: restoring through the trainer would bring back the raw weights beside an average's.
        task.load_state_dict(load_checkpoint(Path(best.best_model_path))["state_dict"])
        # And without the averaging, which would validate the last average in place of what was loaded.
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
        trainer.validate(task, datamodule=data, verbose=False, weights_only=True)
        results["val"] = report.metrics_of(trainer, "val/")
    if cfg.test and data.has_test and not validation_log.pruned:
        trainer.test(task, datamodule=data, verbose=False, weights_only=True)
        results["test"] = report.metrics_of(trainer, "test/")
    return results, score


@contextlib.contextmanager
def _explained(trainer: Any, watch: Any) -> Iterator[None]:
    """Say what a lack of memory or a lost rank means; leave no rank behind.

    Raises:
        ValueError: memory ran out, or another rank has gone.
    """
    import re
    import signal

    from recur import finite

    try:
        yield
    except BaseException as error:
        launcher: Any = getattr(trainer.strategy, "launcher", None)
        if trainer.is_global_zero and hasattr(launcher, "kill") and not isinstance(error, finite.NotFiniteError):
            launcher.kill(signal.SIGKILL)  # where all ranks leave together they have said what they had to
        if told := finite.out_of_memory(error, watch):
            raise ValueError(told) from error
        if isinstance(error, RuntimeError) and re.search(r"[Cc]onnection (closed|reset)|Broken pipe", str(error)):
            raise ValueError("another rank of this run has ended, see above: go on with resume=RUN") from error
        raise


if __name__ == "__main__":
    main()
