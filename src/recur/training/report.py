"""What a run reports: printed at its start and end, in `metrics.json` and in TensorBoard's HParams tab."""

import contextlib
import functools
import logging
import math
import shlex
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import FileWriter

from recur.cli import discard_output, python, tensorboard
from recur.errors import UserError
from recur.nn.costs import matrix_rate
from recur.render import escape_controls, tree_lines
from recur.runs.metrics import (
    device_name,
    format_value,
    hparam_metrics,
    peak_memory_mib,
    plain,
    provenance,
    write_metrics,
)
from recur.runs.trust import check_paths, check_targets
from recur.training.callbacks import Throughput
from recur.training.loggers import log_results
from recur.training.logging_internals import handlers_apart

_QUIETED = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "gensim",
)


@contextlib.contextmanager
def logging_as_before() -> Iterator[None]:
    """Give a program its own logging and warnings back, which a run takes over, and close the run's log file."""
    root = logging.getLogger()
    theirs, hook = root.handlers[:], threading.excepthook
    levels = {name: logging.getLogger(name).level for name in (None, *_QUIETED)}
    for handler in theirs:  # the run would filter them
        root.removeHandler(handler)
    try:
        with handlers_apart(), warnings.catch_warnings():
            try:
                yield
            finally:
                for handler in root.handlers[:]:
                    root.removeHandler(handler)
                    handler.close()
    finally:
        for handler in theirs:
            root.addHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        threading.excepthook = hook


def quiet() -> None:
    """Leave out Lightning's messages that no user can act on; write out control characters of names in messages."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_controls)
        if isinstance(handler, logging.StreamHandler):
            handler.handleError = functools.partial(_cannot_log, handler)  # type: ignore[method-assign]
    threading.excepthook = _without_writers
    for name in _QUIETED:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # our loaders collate from memory-mapped tokens; workers would only add cost
        r"Checkpoint directory .* exists and is not empty.*",  # resuming
        r".*smaller than the logging interval.*",
        r"Experiment logs directory .* exists and is not empty.*",  # of a CSV logger; what it deletes is put back
        r".*GPU available but not used.*",
        r"You requested to overfit but enabled .* shuffling.*",  # our loaders repeat one epoch's batches by themselves
        r".*isinstance\(treespec, LeafSpec\).*",  # Lightning 2.6 against torch 2.13
    ):
        warnings.filterwarnings("ignore", message=message)


def _without_writers(given: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer cannot write: the run will hear of it with its next curve, and says so in one line."""
    if not (isinstance(given.exc_value, OSError) and type(given.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(given)


def _cannot_log(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
    """Let a full disk end the run, which can save nothing either, in place of a stack for every line.

    A pipe whose reader has gone ends nothing.
    """
    error = sys.exc_info()[1]
    if isinstance(error, BrokenPipeError):
        discard_output()
        return
    if isinstance(error, OSError) and isinstance(handler, logging.FileHandler):
        error.filename = handler.baseFilename
        raise error
    logging.Handler.handleError(handler, record)


def _without_controls(record: logging.LogRecord) -> bool:
    """Names of files, columns and classes are of unknown origin: none of them may act on a terminal."""
    record.msg, record.args = escape_controls(record.getMessage()), ()
    return True


def metrics_of(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    """The last logged metrics whose names begin so, without the prefix."""
    return {
        name.removeprefix(prefix): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefix)
    }


def parameter_count(task: pl.LightningModule) -> dict[str, int]:
    """Trainable and all parameters."""
    counts = [(p.numel(), p.requires_grad) for p in task.parameters()]
    return {"trainable": sum(n for n, grad in counts if grad), "all": sum(n for n, _ in counts)}


def opening(folder: Path, config: Mapping[str, Any], data: Any, task: pl.LightningModule, trainer: pl.Trainer) -> None:
    """Print what is about to be trained and on what data; with `extras.print_config` all settings first."""
    counts = parameter_count(task)
    if (config.get("extras") or {}).get("print_config"):
        for line in tree_lines(str(config.get("name", "config")), config):
            _print(line)
    _print(f"run        {_shown(folder)}")
    for name, value in data.describe().items():
        _print(f"{name:<10} {value}")
    frozen = counts["all"] - counts["trainable"]
    _print(f"parameters {counts['trainable']:,} trainable" + (f", {frozen:,} frozen" if frozen else ""))
    place = f"{trainer.num_devices} x {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}"
    _print(f"device     {place}, {trainer.world_size} process(es), precision {trainer.precision}")


@dataclass(frozen=True)
class Spent:
    """What training and scoring have cost.

    Attributes:
        wall_seconds: of the run and, where it was resumed, of its former processes; None where nothing counted them.
        memory_mib: the most that this process has held at a time.
    """

    wall_seconds: float | None
    memory_mib: float


def _throughput(trainer: pl.Trainer) -> Throughput | None:
    return next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]


def spent(trainer: pl.Trainer) -> Spent:
    """What a run has cost so far."""
    speed = _throughput(trainer)
    return Spent(speed.wall_seconds if speed else None, peak_memory_mib(trainer.strategy.root_device))


def closing(
    folder: Path,
    config: Mapping[str, Any],
    data: Any,
    task: Any,
    trainer: pl.Trainer,
    results: dict[str, dict[str, float]],
    *,
    command: Sequence[str],
    spent: Spent,
    baseline: Mapping[str, Any] | None = None,
    pruned: bool = False,
) -> None:
    """Write the HParams values and `metrics.json`, then the table of results and what to type next.

    Args:
        folder: of the run.
        config: of the run.
        data: its data module.
        task: its task.
        trainer: that trained it. Its `Throughput` has counted tokens and seconds, before a resumption too.
        results: metrics by split and name.
        command: the words behind `python -m recur.train` that make the run.
        spent: what it has cost.
        baseline: what a model of n-grams reaches, see `recur.training.baselines`.
        pruned: whether a study ended the run before its time.
    """
    speed = _throughput(trainer)
    rate = speed.tokens / speed.seconds if speed and speed.seconds else None
    wall = spent.wall_seconds
    place = trainer.strategy.root_device  # the task has left it
    # What was trained elsewhere, in a part or all of it, says nothing of the rate of this machine
    own = [device_name(place), trainer.world_size, str(trainer.precision)]
    here = speed is not None and all(one == own for one in speed.places)
    useful = speed.flop / speed.seconds if speed and speed.seconds and here else math.nan
    limit = matrix_rate(_dtype(str(trainer.precision)), place) * trainer.world_size if useful > 0 else math.nan
    ceiling_of = getattr(data, "ceiling_of", lambda split: data.ceiling)  # of others all splits have the same
    ceilings = {split: dict(ceiling_of(split)) for split in results}
    record = {
        **results,
        **({"pruned": True} if pruned else {}),
        "ceiling": dict(data.ceiling),
        "ceiling_by_split": ceilings,
        "baseline": dict(baseline or {}),
        **_confusion(task, trainer, results),
        "name": config["name"],
        "seed": config["seed"],
        "epochs": _epochs(trainer, trained=speed is None or speed.trained),
        "steps": trainer.global_step,
        "parameters": parameter_count(task),
        "wall_seconds": wall and round(wall, 1),
        "train_seconds": round(speed.seconds, 1) if speed else None,
        "tokens_per_second": rate and round(rate),
        "flop_per_second": round(useful) if useful > 0 else None,
        "matrix_rate": round(limit) if useful > 0 else None,
        "bytes_a_step": bytes_a_step(trainer),
        "peak_memory_mib": round(spent.memory_mib),
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "data": plain(data.describe()),
        "command": shlex.join(["python", "-m", "recur.train", *command]),
        **provenance(place),
    }
    _close_hparams(trainer, task.family, results)
    log_results(trainer.loggers, results, trainer.global_step)
    write_metrics(folder, record)  # last: it says that the run is complete
    _print_table(results, ceilings, baseline or {})
    if (baseline or any(ceilings.values())) and any(not _whole(trainer, split) for split in results):
        _print("the figures of the run are of limited batches, those beside them of whole splits")
    epochs = f"{record['epochs']:,} epoch{'' if record['epochs'] == 1 else 's'}"
    seconds = "" if wall is None else f" in {wall:.0f} s"
    _print(f"trained {epochs}, {trainer.global_step} steps{seconds}" + (f", {rate:,.0f} tokens/s" if rate else ""))
    if useful > 0:
        share = f"{useful / limit:.0%} of the rate of large products here, {limit / 1e9:,.0f}"
        _print(f"products   {useful / 1e9:,.1f} useful GFLOP/s, {share}")
    _print("next:")
    for line in next_commands(folder, config, task):
        _print(f"  {line}")


def _dtype(precision: str) -> torch.dtype:
    """Of the operands of a run's products."""
    return torch.float64 if "64" in precision else torch.bfloat16 if "16" in precision else torch.float32


def _close_hparams(trainer: pl.Trainer, family: str, results: dict[str, dict[str, float]]) -> None:
    """Write a run's final figures into TensorBoard, and that it has ended well."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            known = {f"{split}/{name}": value for split, values in results.items() for name, value in values.items()}
            final = {f"result/{name}": known[name] for name in hparam_metrics(family) if name in known}
            logger.log_metrics(final, trainer.global_step)
            # Lightning closes the writer after training; with nothing scored since, nothing has opened it again.
            writer = logger.experiment.file_writer or FileWriter(logger.log_dir)
            writer.add_summary(hparams({}, {})[2])  # the session has ended well
            writer.flush()
            logger.save()
            logger.experiment.close()
            writer.close()  # and with it its thread; the logger's own is closed already


def _confusion(task: Any, trainer: pl.Trainer, results: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Counts of the split that was scored last, `[true][predicted]`, for the model card.

    Of a run on several processes there is none: their counts could only be added up while all of them wait here.
    """
    scored = [split for split, values in results.items() if values]
    if task.family != "sentiment" or trainer.world_size > 1 or not scored:
        return {}
    matrix = plain(task.confusion.compute().tolist())
    return {"confusion": {"split": scored[-1], "matrix": matrix, "class_names": list(task.class_names)}}


def _epochs(trainer: pl.Trainer, *, trained: bool) -> int | float:
    """Epochs trained; of a run that ended within one a number with two digits.

    Where nothing was left to train, epochs may have had other numbers of batches, on other ranks or other data.
    """
    loop = trainer.fit_loop
    batches, begun = loop.epoch_loop.batch_progress.current.completed, loop.epoch_progress.current.ready
    over: int = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    whole = batches >= trainer.num_training_batches if trained else over >= begun
    if whole or not begun:
        return begun
    return round(begun - 1 + batches / trainer.num_training_batches, 2)


def _whole(trainer: pl.Trainer, split: str) -> bool:
    """Whether all batches of a split are scored."""
    limit = getattr(trainer, f"limit_{split}_batches", 1.0)
    if isinstance(limit, float):
        return limit == 1.0
    data = getattr(trainer, "datamodule", None)
    return data is not None and bool(limit >= len(getattr(data, f"{split}_dataloader")()))


def bytes_a_step(trainer: pl.Trainer) -> int:
    """Least traffic with memory of an optimizer step, in bytes: weights, gradients and the optimizer's own numbers.

    Each weight and each of the optimizer's numbers is read and written, a gradient written and read.
    """
    total = 0
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                own = [value for value in optimizer.state.get(parameter, {}).values() if isinstance(value, Tensor)]
                total += 4 * parameter.nbytes + 2 * sum(value.nbytes for value in own if value.dim())
    return total


def next_commands(folder: Path, config: Mapping[str, Any], task: Any) -> list[str]:
    """What to type next, as it works in the shell that typed `recur.train`. A command that would refuse is left out.

    Args:
        folder: of the run.
        config: of the run.
        task: its task.
    """
    run = shlex.quote(_shown(folder))
    commands = []
    try:
        check_targets(dict(config["model"]), "model")  # as the commands do
    except UserError:
        pass
    else:
        if task.family == "language" and not config["data"].get("reverse"):
            commands.append(f"{python()} -m recur.generate {run} --tokens 200")
        elif task.family != "language":
            commands.append(f"{python()} -m recur.predict {run} 'This film is terrible' 'This film is great'")
        commands.append(f"{python()} -m recur.evaluate {run}{_cache_to_type(folder, config['data'].get('cache_dir'))}")
    if not any(str(node.get("_target_")).endswith("TensorBoardLogger") for node in config["logger"].values()):
        return commands
    # The folder above, where the run has a name: of one that TensorBoard calls ".", its HParams tab finds no metric.
    return [*commands, tensorboard(Path(_shown(folder.absolute().parent)))]


def _cache_to_type(folder: Path, cache: str | None) -> str:
    """The setting that `evaluate` wants typed of a run that keeps its tokens outside its folder, else nothing."""
    try:
        check_paths({"cache_dir": cache}, "data", folder)
    except UserError:
        return f" {shlex.quote(f'cache_dir={cache}')}"
    return ""


def _print_table(
    results: dict[str, dict[str, float]], ceilings: dict[str, dict[str, float]], baseline: Mapping[str, Any]
) -> None:
    from rich.console import Console
    from rich.table import Table

    names = dict.fromkeys(name for values in results.values() for name in values)
    table = Table("", box=None, pad_edge=False)
    beside = [split for split in results if split in baseline]
    titles = [f"{baseline['name']}, {split}" for split in beside]
    known = {split: ceiling for split, ceiling in ceilings.items() if ceiling}
    alike = len({tuple(ceiling.items()) for ceiling in known.values()}) == 1
    bounds = {"best possible": next(iter(known.items()))} if alike else {}
    if not alike:
        bounds = {f"best possible, {split}": (split, ceiling) for split, ceiling in known.items()}
    for title in [*results, *titles, *bounds]:
        table.add_column(title, justify="right", min_width=13)
    for name in names:
        cells = [format_value(f"{split}/{name}", values.get(name)) for split, values in results.items()]
        cells += [format_value(f"{split}/{name}", baseline[split].get(name)) for split in beside]
        cells += [format_value(f"{split}/{name}", ceiling.get(name)) for split, ceiling in bounds.values()]
        table.add_row(name, *cells)
    console = Console(width=200, color_system=None, force_terminal=False)
    with console.capture() as text:
        console.print(table)
    _print("")
    for line in text.get().splitlines():
        _print(line.rstrip())
    _print("")


def _shown(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)


def _print(line: str) -> None:
    logging.getLogger("recur").info(line)
