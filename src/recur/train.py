"""The door to training: `python -m recur.train [overrides]`, alone or, with `-m`, as a sweep.

Reads top to bottom: compose, build data, model and trainer, fit, score the best checkpoint, report.
"""

import sys
import time
from pathlib import Path
from typing import Any

from recur import cli


def main() -> None:
    """Entry point of `python -m recur.train` and `recur-train`."""
    import os

    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach cli.guard, which tells them in one line
    cli.guard(lambda: _resume_with_own_config(sys.argv))
    door = hydra.main(version_base="1.3", config_path=str(cli.conf_dir()), config_name="train")(_job)
    cli.guard(door)


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

            argv[1:] = [*recorded_arguments(given[-1]), *more, f"resume={given[-1]}"]
        return
    folder = Path(given[-1]).expanduser().resolve()
    if not (folder / ".hydra" / "config.yaml").is_file():
        cli.fail(f"cannot resume {given[-1]}: it is not a run folder (it has no .hydra/config.yaml)")
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        cli.fail(f"cannot resume {given[-1]}: it has no checkpoints/last.ckpt yet; start it again")
    argv[1:1] = ["--config-path", str(folder / ".hydra"), "--config-name", "config", f"hydra.run.dir={folder}"]
    argv.append("hydra.job_logging.formatters.simple.format='%(message)s'")  # conf/train.yaml is not read


def _job(cfg: Any) -> float | None:
    """One run. Returns the monitored metric's best value, which sweeps compare."""
    try:
        return _run(cfg)
    except Exception as error:  # here and not in guard: Hydra would print a line of its own first
        message = cli.explain(error)
        import os

        if message is None or os.environ.get("RECUR_DEBUG") == "1":
            raise
        cli.fail(message)


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
    from lightning.pytorch.callbacks import LearningRateMonitor, WeightAveraging
    from omegaconf import OmegaConf

    from recur import report, schema
    from recur.callbacks import PlannedNoise, SelfContained, Throughput
    from recur.runs import load_checkpoint, write_atomic
    from recur.sweeps.witness import Witness

    started = time.time()
    folder = Path(HydraConfig.get().runtime.output_dir)
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    report.quiet()
    if not (isinstance(cfg.seed, int) and 0 <= cfg.seed < 2**32):
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {cfg.seed}")
    settings = {key: value for key, value in config["trainer"].items() if key != "precision"}
    schema.check({**config, "trainer": settings}, "")
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    data = build(cfg.data)
    data.prepare_data()
    data.setup("fit")
    told = data.model_arguments()
    task = build(cfg.model, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler), **told)
    plain_told = {key: value for key, value in told.items() if not isinstance(value, torch.Tensor)}
    callbacks = [built for node in cfg.callbacks.values() if (built := build(node)) is not None]
    callbacks.append(SelfContained(config, data.tokenizer.to_json(), plain_told))
    witness = Witness(folder, cfg.monitor)
    callbacks += [PlannedNoise(cfg.seed), witness]
    loggers = [build(node) for node in cfg.logger.values()]
    if not loggers:  # nobody to tell the learning rate
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    precision = report.precision(cfg.trainer.precision, cfg.trainer.accelerator)
    trainer = build({**settings, "_partial_": True}, precision=precision, callbacks=callbacks, logger=loggers)

    if trainer.is_global_zero:
        write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        write_atomic(folder / "tokenizer.json", data.tokenizer.to_json())
        report.opening(folder, data, task, trainer)
        report.announce_hparams(trainer.loggers, config, task.family)

    last = folder / "checkpoints" / "last.ckpt" if cfg.resume else None
    trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)

    best = trainer.checkpoint_callback
    score = None if best is None or best.best_model_score is None else float(best.best_model_score)
    results = {"val": report.metrics_of(trainer, "val/")}
    if best is not None and best.best_model_path and not witness.pruned:
        # By hand: restoring through the trainer would bring back the raw weights beside an average's.
        task.load_state_dict(load_checkpoint(Path(best.best_model_path))["state_dict"])
        # And without the averaging, which would validate the last average in place of what was loaded.
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
        trainer.validate(task, datamodule=data, verbose=False, weights_only=True)
        results["val"] = report.metrics_of(trainer, "val/")
    if cfg.test and data.has_test and not witness.pruned:
        trainer.test(task, datamodule=data, verbose=False, weights_only=True)
        results["test"] = report.metrics_of(trainer, "test/")

    if trainer.is_global_zero:
        speed = next((c for c in callbacks if isinstance(c, Throughput)), None)
        report.closing(folder, cfg, data, task, trainer, results, speed, time.time() - started, witness.pruned)
    return score


if __name__ == "__main__":
    main()
