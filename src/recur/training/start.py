"""A run from its composed config to its results: data, task, callbacks and trainer are built, checked and trained."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler

from recur import cli
from recur.config import schema
from recur.config.compose import Composed, build
from recur.data.hub import without_network
from recur.data.language import LanguageData
from recur.data.sentiment import SentimentData
from recur.data.text import Tokenizer
from recur.errors import UserError
from recur.runs import fingerprint, precision
from recur.runs.build import Part
from recur.runs.files import naming
from recur.runs.metrics import reset_peak_memory
from recur.runs.run import load_checkpoint
from recur.runs.trust import is_typed
from recur.training import lr_finder, report, weights
from recur.training.allocator import keeping_freed_memory
from recur.training.baselines import Baseline, baseline, left_out
from recur.training.callbacks import OwnValues, PlannedNoise, Throughput, ValidationLog
from recur.training.checkpointing import Files, SelfContained
from recur.training.failures import Stop
from recur.training.fit import Trained, check_lengths, check_place, train
from recur.training.loggers import of_a_run
from recur.training.run_files import begin, check_parts, take_up, withdrawn_if_refused

_PRECISION = "RECUR_PRECISION"  # what `trainer.precision=auto` came to on rank 0, behind its process id
_PROFILERS: dict[str, Any] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


class Pruning(Protocol):
    """A callback that may find, during training, that there is no point in going on."""

    pruned: bool


def run(
    composed: Composed, stop: Stop, pruning: Pruning | None = None, command: Sequence[str] | None = None
) -> Trained:
    """Train what a config describes, in the run's folder.

    Args:
        composed: the config.
        stop: receives the signals that end a run after a step.
        pruning: one more callback, in a study.
        command: what was typed, where that was `python -m recur.train`; None for what the config was composed of.

    Returns:
        the metrics, which `metrics.json` has too.

    Raises:
        UserError: a setting, the data or the folder is not as it must be; nothing has been changed then.
        Stopped: a signal came.
    """
    report.quiet()
    reset_peak_memory()
    offline = composed.resumed and not is_typed("data.path", composed.overrides)
    with process_settings(), without_network(offline), _precision_for_ranks():
        return _run(composed, stop, pruning, composed.overrides if command is None else command)


@contextmanager
def process_settings() -> Iterator[None]:
    """What this process computes and keeps memory by while it trains; what it is timed beside needs the same."""
    with _denormals_as_zero(), keeping_freed_memory():
        yield


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Compute with 0 in place of float32 numbers below 1.2e-38, on this thread and those that it starts.

    A gradient that comes back through hundreds of steps ends among them, and a processor that takes 100 cycles for each
    is then 10 to 15 times as slow. Before the first product of many threads, since threads inherit it when they start.
    """
    before = float(torch.tensor(1e-39) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def _precision_for_ranks() -> Iterator[None]:
    """Leave what `with_precision` writes down for the ranks of this run to no other process."""
    before = os.environ.get(_PRECISION)
    try:
        yield
    finally:
        os.environ.pop(_PRECISION, None)
        if before is not None:
            os.environ[_PRECISION] = before


def _run(composed: Composed, stop: Stop, pruning: Pruning | None, command: Sequence[str]) -> Trained:
    begun = time.monotonic()
    schema.check_run(composed.config, composed.used)
    composed = with_precision(with_accelerator(with_few_batches(composed)))
    if not composed.config.get("resume"):
        _check_frozen(composed.config)
    checkpoint = take_up(composed)
    data = _data(composed, checkpoint)
    if composed.config["baseline"] and (reason := left_out(data)):
        cli.notify(f"baseline   left out: {reason}")
        composed = composed.changed("baseline", False)
    task = _task(composed.config, data, resumed=checkpoint is not None)
    if composed.config.get("init_from") and checkpoint is None:
        copied = weights.copy_from(composed.config["init_from"], task, data.tokenizer.vocabulary)
        if _freezes(composed.config) and "net.embedding.weight" not in copied.names:
            remedy = f"set model.net.embedding_dim to that of {composed.config['init_from']}"
            raise UserError("model.net.freeze_vectors", True, "would keep the word vectors random", remedy)
        cli.notify(f"init_from  {copied}")
    if composed.config.get("find_lr"):
        return _find_lr(composed.config, data, task)
    # The folder's name for what libraries write there.
    with naming(composed.folder), withdrawn_if_refused(composed.folder) as built:
        callbacks = _callbacks(composed, data, stop)
        for callback in callbacks:
            if isinstance(callback, Throughput):
                callback.since(begun)
        if cli.rank() and _alone(composed.config["trainer"]):  # before a logger opens anything
            rule = f"is process {cli.rank()} of several that were started together, and this run is of one"
            remedy = "runs of their own are started by -m or, in a SLURM step, with SLURM_PROCID unset"
            raise UserError("trainer.devices", composed.config["trainer"].get("devices"), rule, remedy)
        trainer = _trainer(composed, [*callbacks, *([] if pruning is None else [pruning])])
        built.append(trainer)
        check_lengths(data, trainer, test=composed.config["test"])
        if checkpoint is not None:
            check_place(data, trainer, checkpoint)
        check_parts(task, trainer, checkpoint)
        return _train(composed, data, task, trainer, checkpoint, pruning, command)


def _freezes(config: Mapping[str, Any]) -> bool:
    """Whether word vectors are kept as they are and do not come from the data."""
    net = config["model"].get("net") or {}
    return bool(net.get("freeze_vectors")) and config["data"].get("vectors") is None


def _check_frozen(config: Mapping[str, Any]) -> None:
    """Refuse random word vectors that would stay as they are; a classifier, which may be given some, does so itself."""
    if _freezes(config) and not config.get("init_from"):
        rule = "would keep the word vectors random"
        raise UserError("model.net.freeze_vectors", True, rule, "name a run that has learnt some with init_from=RUN")


def _train(
    composed: Composed,
    data: Any,
    task: Any,
    trainer: Any,
    checkpoint: Path | None,
    pruning: Pruning | None,
    command: Sequence[str],
) -> Trained:
    begin(composed, data, task, trainer, checkpoint)
    trained = train(
        data,
        task,
        trainer,
        checkpoint=checkpoint,
        test=composed.config["test"],
        called_off=lambda: pruning is not None and pruning.pruned,
    )
    if trainer.is_global_zero:
        spent = report.spent(trainer)  # before the model of n-grams, which is none of the run's own cost
        pruned = pruning is not None and pruning.pruned
        beside = _baseline(composed.config, data, trained.results) if not pruned else {}
        parts = (composed.folder, composed.config, data, task, trainer, trained.results)
        report.closing(*parts, command=command, spent=spent, baseline=beside, pruned=pruned)
    return trained


def with_few_batches(composed: Composed) -> Composed:
    """The config with what `trainer.fast_dev_run` asks for, but with the checkpoints that a run needs.

    Raises:
        UserError: of a run that goes on.
    """
    given = composed.config["trainer"].get("fast_dev_run")
    if not given:
        return composed
    if composed.resumed:
        raise UserError("trainer.fast_dev_run", given, "is for a new run")
    limits = {f"limit_{split}_batches": int(given) for split in ("train", "val", "test")}
    limits |= {"max_epochs": 1, "max_steps": -1, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 1}
    for key, value in {**limits, "val_check_interval": 1.0, "fast_dev_run": False}.items():
        composed = composed.changed(f"trainer.{key}", value)
    return composed.changed("logger", {})


def with_accelerator(composed: Composed) -> Composed:
    """The config with the CPU where Lightning would choose Apple's GPU, which lacks the float64 of sums."""
    chosen = composed.config["trainer"].get("accelerator", "auto")
    if chosen != "auto" or torch.cuda.is_available() or not torch.backends.mps.is_available():
        return composed
    return composed.changed("trainer.accelerator", "cpu")


def with_precision(composed: Composed) -> Composed:
    """The config with what `trainer.precision=auto` comes to here: a resumed run goes on in what it began with."""
    trainer = composed.config["trainer"]
    wanted, accelerator = trainer.get("precision", "auto"), str(trainer.get("accelerator", "auto"))
    typed = any(word.lstrip("+").startswith("trainer.precision=") for word in composed.overrides)
    former = composed.resumed and not typed
    # The ranks that rank 0 starts take its choice: a probe of theirs, beside others, may come to another one. Ranks of
    # torchrun may inherit the variable too, from a process that is not their parent and had a run of its own.
    pid, _, given = os.environ.get(_PRECISION, "").partition(":")
    if not (cli.rank() and wanted == "auto" and pid == str(os.getppid())):
        given = ""
    chosen = given or (precision.resolve_former if former else precision.resolve)(wanted, accelerator)
    if cli.rank() == 0:
        os.environ[_PRECISION] = f"{os.getpid()}:{chosen}"
    if cli.rank() == 0 and precision.emulated(chosen, accelerator):
        cli.notify(
            f"warning: trainer.precision={chosen}, and this machine only emulates bfloat16, which takes many times as "
            f"long{' and rounds otherwise than the run did so far' if composed.resumed else ''}; "
            f"set trainer.precision={precision.EXACT} to compute in float32"
        )
    return composed.changed("trainer.precision", chosen)


def _find_lr(config: dict[str, Any], data: Any, task: Any) -> Trained:
    """Print a good learning rate instead of training."""
    tested = lr_finder.find(data, task, config)
    print(f"{tested.table()}\nsuggested: optimizer.lr={tested.rate:.2g}", flush=True)
    return Trained({}, None)


def _data(composed: Composed, checkpoint: Path | None) -> Any:
    """The data, set up; that of a resumed run with its own vocabulary, and compared with what it was.

    Raises:
        UserError: the data cannot be read, or has changed.
    """
    pl.seed_everything(composed.config["seed"], workers=True, verbose=False)
    settings = composed.config["data"]
    if checkpoint is not None and _is_gone(settings.get("vectors")):
        cli.notify(f"vectors    {settings['vectors']} is not there any more: those of the checkpoint are used")
        settings = _without_vectors(settings)
    data = build(settings, "data")
    data.prepare_data()
    data.setup("fit")
    if checkpoint is not None:
        before = load_checkpoint(checkpoint)["recur"]["fingerprint"]
        now = fingerprint.fingerprint(data)
        if composed.config["accept_data_change"] and before != now:
            data = _data_of_before(composed, checkpoint)
            if before.get("train") != fingerprint.fingerprint(data)["train"]:
                _check_carved(data, before.get("train"), composed.folder)
            return data
        if before.get("vocabulary") != now["vocabulary"]:  # the run may have gone on with these data already
            with suppress(UserError):  # of a new class: the line below says that the data has changed
                data = _data_of_before(composed, checkpoint)
                now = fingerprint.fingerprint(data)
        fingerprint.compare(before, now, str(composed.folder))
    return data


def _check_carved(data: Any, before: Mapping[str, Any] | None, folder: Path) -> None:
    """Refuse to cut validation rows or text off training data that has changed.

    Text may go on behind that of before: what is cut off its end is then new, or was cut off before.

    Args:
        data: as it is now.
        before: the fingerprint of the training split of then.
        folder: of the run.

    Raises:
        UserError: what is validated on may have been trained on.
    """
    remedy = "name other texts in data.val (and data.test)"
    if isinstance(data, SentimentData) and data.cut_off():
        rule = f"carves validation rows anew, most of which {folder} was trained on"
        raise UserError("accept_data_change", rule=rule, remedy=remedy)
    if isinstance(data, LanguageData) and data.cut_off() and not fingerprint.begins_with(data, before):
        rule = f"cuts validation text off anew, which {folder} may have been trained on"
        raise UserError("accept_data_change", rule=rule, remedy=f"{remedy}, or add text behind that of before alone")


def _without_vectors(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Data settings that read nothing for word vectors: the weights hold what was read."""
    keys = ("vectors",) if settings.get("train_on_unlabelled") else ("vectors", "unlabelled")
    return {**settings, **{key: None for key in keys if key in settings}}


def _is_gone(vectors: str | None) -> bool:
    return vectors not in (None, "train") and not Path(os.path.expanduser(str(vectors))).is_file()


def _data_of_before(composed: Composed, checkpoint: Path) -> Any:
    """Other data than the run began with, read with the run's vocabulary and classes."""
    own = load_checkpoint(checkpoint)["recur"]
    settings = composed.config["data"]
    data = build(_without_vectors(settings), "data")
    names = [own["data"]["class_names"]] if "class_names" in own["data"] else []
    data.use(Tokenizer.from_json(own["tokenizer"]), *names, carve=True)
    data.prepare_data()
    data.setup("fit")
    return data


def _baseline(config: dict[str, Any], data: Any, splits: Iterable[str]) -> Baseline:
    """What a model of n-grams reaches; nothing where memory runs out, which must not cost the run its own figures."""
    if not config["baseline"]:
        return {}
    try:
        return baseline(data, splits, config["data"].get("cache_dir"))
    except MemoryError:
        cli.notify("baseline   left out: memory ran out")
        return {}


def _task(config: dict[str, Any], data: Any, *, resumed: bool = False) -> Any:
    parts = {group: build(config[group], group) for group in ("optimizer", "scheduler")}
    model, arguments = config["model"], data.model_arguments()
    # Those of a resumed run come with its weights, so that there may be none to freeze before.
    later = resumed and arguments.get("vectors") is None and model["net"].get("freeze_vectors")
    if later:
        model = {**model, "net": {**model["net"], "freeze_vectors": False}}
    task = build(model, "model", **parts, **arguments)
    if later:
        task.net.embedding.weight.requires_grad_(False)
    return task


def _callbacks(composed: Composed, data: Any, stop: Stop) -> list[Any]:
    """The callbacks of the config and those that every run has."""
    config = composed.config
    built = [build(node, f"callbacks.{name}") for name, node in config["callbacks"].items()]
    built = [part(stop=stop) if isinstance(part, Part) else part for part in built if part is not None]
    # What keeps the weights of training has to come before what puts averages in their place, wherever each is named.
    built.sort(key=lambda part: isinstance(part, WeightAveraging))
    described = {key: v for key, v in data.model_arguments().items() if not isinstance(v, torch.Tensor)}
    content = SelfContained(composed.record(), data.tokenizer.to_json(), described, fingerprint.fingerprint(data))
    return [*built, content, PlannedNoise(config["seed"]), OwnValues(), ValidationLog(composed.folder)]


def _alone(settings: Mapping[str, Any]) -> bool:
    """Whether a trainer of these settings is of one process."""
    own = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "profiler": None}
    return bool(build({**settings, **own, "_partial_": True}, "trainer")().world_size == 1)


def _trainer(composed: Composed, callbacks: list[Any]) -> Any:
    config = composed.config
    settings = dict(config["trainer"])
    if kind := _PROFILERS.get(str(settings.get("profiler"))):
        settings["profiler"] = kind(dirpath=composed.folder, filename="profile")
    with of_a_run(resumed=composed.resumed):
        loggers = [build(node, f"logger.{name}") for name, node in config["logger"].items()]
    if not loggers:  # which it would complain about
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    best = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings["enable_checkpointing"] = best  # else Lightning would add one
    plugins = [Files(), *build(settings.pop("plugins", None) or [], "trainer.plugins")]
    return build(
        {**settings, "_partial_": True}, "trainer", callbacks=callbacks, logger=loggers or False, plugins=plugins
    )
