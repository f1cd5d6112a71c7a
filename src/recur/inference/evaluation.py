"""Metrics of a run: on its own data or on other data, and, for language models, with a memory of the text.

One process and one device, whatever the run was trained on; every text once. The run's own data is read with the
settings it was trained with; other data with the run's own tokenizer and classes.
"""

import contextlib
import itertools
import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from recur.cli import notify
from recur.config import data_settings
from recur.data.hub import without_network
from recur.data.sentiment import SentimentData
from recur.data.streams import StreamLoader
from recur.errors import ABSENT, UserError
from recur.nn.packed import TokenWindow
from recur.runs import fingerprint, precision
from recur.runs import run as runs
from recur.tasks.base import reset_metrics
from recur.tasks.dynamic_evaluation import (
    DECAY,
    EPSILON,
    STREAMS,
    WINDOW,
    GradientStatistics,
    dynamic_evaluation,
    gradient_statistics,
    tune_dynamic_evaluation,
)
from recur.tasks.neural_cache import FLATNESSES, WEIGHTS, neural_cache, tune_neural_cache
from recur.tasks.scoring import each_window_alone
from recur.tasks.temperature import COLDEST, HOTTEST, NARROW, at_temperature, tune_temperature

SPLITS = ("train", "val", "test")
# Held by an evaluation from Python: a run's sums, Lightning's loggers and the hub's switch are shared by threads.
ONE_AT_A_TIME = threading.RLock()
_FURTHER = 4  # times that a search for a cache's flatness goes on beyond its end
# Settings of the data that change how it is read and not what it is.
_SAME_CONTENT = frozenset(("batch_size", "eval_batch_size", "max_tokens", "eval_bptt", "cache_dir", "seed"))
_CUTS = ("val_fraction", "test_fraction", "limit_train")  # off the training texts of a run's own data
_TRAINED_ON = {"unlabelled": None, "pseudo_labelled": None, "train_on_unlabelled": False, "limit_unlabelled": None}
_OTHER_DATA = "name the data to evaluate on with --data"
_STATISTICS_BATCHES = 400  # of training text, to measure how large each weight's gradients are
_TUNING_WINDOWS = 2000  # of validation text, on which settings of dynamic evaluation are compared
_WINDOWS_TOGETHER, _TOKENS_TOGETHER = 64, 16_384  # at most, of windows that are read from an empty state
_TEMPERATURE_TOKENS = 50_000  # of validation text, on which a temperature is chosen


@dataclass(frozen=True)
class Dynamic:
    """Settings of dynamic evaluation (Krause et al. 2017).

    Attributes:
        lr: step size; the paper's is 5e-5.
        decay: pull towards the original weights, the paper's lambda.
        epsilon: the least size of a weight's gradients that a step counts with.

    Raises:
        UserError: a value out of its range.
    """

    lr: float
    decay: float = DECAY
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.lr < math.inf:
            raise UserError("dynamic", self.lr, "must be above 0 and finite")
        if not 0 <= self.decay <= 1:
            raise UserError("dynamic_decay", self.decay, "must be from 0 to 1")
        if not 0 < self.epsilon < math.inf:
            raise UserError("dynamic_epsilon", self.epsilon, "must be above 0 and finite")


@dataclass(frozen=True)
class Cache:
    """Settings of the neural cache (Grave, Joulin & Usunier 2017).

    Attributes:
        size: states kept of each stream.
        flatness: the paper's theta; 0 is a plain unigram cache.
        weight: the paper's lambda.

    Raises:
        UserError: a value out of its range.
    """

    size: int
    flatness: float = 0.3
    weight: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.size < 1:
            raise UserError("cache", self.size, "must be above 0")
        if not 0 <= self.flatness < math.inf:
            raise UserError("cache_flatness", self.flatness, "must be at least 0 and finite")
        if not 0 <= self.weight < 1:
            raise UserError("cache_weight", self.weight, "must be in [0, 1)")


def open_data(run: "runs.Run", path: str | None = None, settings: Sequence[str] = ()) -> Any:
    """The data of a run, or other data as the run would read it.

    Args:
        run: an open run.
        path: a file or folder; None for the run's own data.
        settings: `key=value` changes to the data settings.

    Raises:
        UserError: an unknown setting, one that does nothing or that does not fit the model, or the run's own data has
            changed since.
    """
    described = settings_of_data(run, path, settings)
    keys = set(map(_key, settings))
    _check_changes(run, keys, described, other=path is not None)
    with without_network(path is None and "path" not in keys):
        if path is not None:
            return _read(run, described)
        data = _read(run, described, own=True)
        if run.family == "sentiment" and list(data.class_names) != list(run.data["class_names"]):
            rule = f"has changed since the run was trained, its classes are {', '.join(map(str, data.class_names))} now"
            raise UserError(f"the data of {run.checkpoint}", ABSENT, rule, _OTHER_DATA)
        known = run.fingerprint if keys <= _SAME_CONTENT else None
        if data.tokenizer.to_json() != run.tokenizer.to_json():
            if known is None:
                rule = "has changed since the run was trained, its vocabulary is another one now"
                raise UserError(f"the data of {run.checkpoint}", ABSENT, rule, _OTHER_DATA)
            data = _read(run, described, carve=True)  # as a run reads that goes on with other data
    if known is not None:
        kept = {split: facts for split, facts in known.items() if split not in fingerprint.BESIDE}
        fingerprint.compare(kept, fingerprint.fingerprint(data), str(run.checkpoint), _OTHER_DATA)
    return data


def _check_changes(run: "runs.Run", keys: set[str], described: dict[str, Any], *, other: bool) -> None:
    """Refuse changes that do nothing for `other` data, and streams for a model of single windows or the reverse."""
    if other and "tokenizer" in keys:
        raise UserError(
            "tokenizer", rule="does nothing for other data, which the run's own reads", remedy="leave it out"
        )
    if other and (cut := next((key for key in _CUTS if key in keys), None)):
        raise UserError(cut, rule="does nothing for other data, which is read whole", remedy="leave it out")
    own, window = run.config["data"].get("window"), described.get("window")
    if run.family == "language" and (window is None) != (own is None):
        rule = "must be null, as the run reads streams" if own is None else "must be a number, as the run reads windows"
        raise UserError("window", window, rule, "leave it out")


def same_content(settings: Sequence[str]) -> list[str]:
    """Those of some changes to data settings that say how or where data is read and not what it is."""
    return [word for word in settings if _key(word) in _SAME_CONTENT]


def _key(word: str) -> str:
    return word.removeprefix("data.").partition("=")[0].partition(".")[0]


def _read(run: "runs.Run", settings: dict[str, Any], *, own: bool = False, carve: bool = False) -> Any:
    """Data as its settings describe it, with the run's tokenizer and classes unless it has its `own`."""
    data = data_settings.build(settings)
    if not own:
        data.use(run.tokenizer, *([run.data["class_names"]] if run.family == "sentiment" else []), carve=carve)
    pseudo = run.config["data"].get("pseudo_labelled")
    if pseudo and isinstance(data, SentimentData) and (own or carve):
        data.leave_out(pseudo)
    if isinstance(data, SentimentData):
        data.setup("test")  # its training rows may be fewer than a batch: others, which may be gone, stood beside them
    else:
        data.prepare_data()
        data.setup()
    return data


def settings_of_data(run: "runs.Run", path: str | None = None, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The settings with which `open_data` opens it; arguments and errors as there."""
    # What was trained on and is never evaluated may be gone.
    own = {key: _TRAINED_ON.get(key, value) for key, value in run.config["data"].items()}
    return data_settings.changed(own, settings, run.place(run.folder or run.checkpoint.parent), path)


def chosen_splits(data: Any, split: str | None = None) -> list[str]:
    """The splits to evaluate: the one named, else val and test, else all there are.

    Raises:
        UserError: the data has no such split.
    """
    if split is not None and split not in data.splits:
        raise UserError("--split", split, f"must be one of the data's splits {', '.join(data.splits)}")
    if split is not None:
        return [split]
    return [name for name in ("val", "test") if name in data.splits] or list(data.splits)


def evaluate_split(run: "runs.Run", data: Any, split: str) -> dict[str, Any]:
    """Metrics of one split.

    Args:
        run: an open run; its device is where it is computed, in the precision of
            `recur.runs.precision.of_evaluation`.
        data: its data module, set up.
        split: train, val or test.

    Returns:
        metrics by name, None where one is not defined, for a classifier also the confusion matrix as
        `confusion[true class][predicted class]`.
    """
    device = run.task.device
    chosen, lacking = precision.of_evaluation(run.config, device)
    if lacking:
        notify(f"{run.checkpoint} measured itself in {precision.LOW}, which {device} lacks: evaluated in {chosen}")
    with _quiet():
        loader = data.loader(split)
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            precision=cast(Any, chosen),
            plugins=[LightningEnvironment()],  # one process, also in a SLURM job of several tasks
        )
        reset_metrics(run.task)
        try:
            trainer.test(run.task, loader, verbose=False)
            if trainer.received_sigterm:  # in the last batch, after which Lightning looks no more
                raise SystemExit(128 + signal.SIGTERM)
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit as error:
            if trainer.interrupted and error.code == 1:  # as which Lightning ends what Ctrl-C interrupts
                raise KeyboardInterrupt from None
            raise
        finally:
            run.task.to(device)  # where the trainer found it
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics: dict[str, Any] = {
        name.removeprefix("test/"): None if math.isnan(value) else value
        for name, value in values.items()
        if name.startswith("test/")
    }
    if run.family == "sentiment":
        metrics["texts"] = len(loader.texts)
        metrics["confusion"] = run.task.confusion.compute().tolist()
        metrics["classes"] = by_class(metrics["confusion"], run.task.class_names)
        metrics["class_names"] = run.task.class_names
    return metrics


def by_class(confusion: Sequence[Sequence[int]], names: Sequence[Any]) -> dict[str, dict[str, float | int | None]]:
    """Precision, recall and F1 of each class by its name, None where nothing can be divided, and its texts.

    Args:
        confusion: `[true class][predicted class]`.
        names: of the classes.
    """
    figures: dict[str, dict[str, float | int | None]] = {}
    for index, name in enumerate(names):
        right, texts, predicted = confusion[index][index], sum(confusion[index]), sum(row[index] for row in confusion)
        figures[str(name)] = {
            "precision": right / predicted if predicted else None,
            "recall": right / texts if texts else None,
            "f1": 2 * right / (predicted + texts) if predicted + texts else None,
            "texts": texts,
        }
    return figures


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's messages about every evaluation, which no user can act on."""
    loggers = [logging.getLogger(f"lightning.pytorch.{name}") for name in ("utilities.rank_zero", "accelerators.cuda")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Our loaders collate from memory-mapped tokens; worker processes would only add cost.
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=r".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")  # with torch 2.13
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def cache_figures(run: "runs.Run", data: Any, split: str, cache: Cache) -> dict[str, Any]:
    """Loss and perplexity of a language model with a neural cache, and the cache's settings."""
    task = run.task.eval()
    return neural_cache(task, data.loader(split), **asdict(cache)) | asdict(cache)


def tuned_cache(run: "runs.Run", training: Any) -> Cache:
    """The flatness and the weight of a cache of 2000 states that are best on the run's own validation text.

    How flat is best depends on how long the states are, so the search goes on as long as the largest value is best.
    """
    task = run.task.eval()
    tried: tuple[float, ...] = FLATNESSES
    trials = tune_neural_cache(task, training.loader("val"), flatnesses=tried)
    for _ in range(_FURTHER):
        if trials[0]["flatness"] != tried[-1] or trials[0]["weight"] == 0:
            break
        tried = tuple(tried[-1] * factor for factor in (1.7, 2.5, 4.0))
        trials = sorted([*trials, *tune_neural_cache(task, training.loader("val"), flatnesses=tried)], key=_loss)
    best = trials[0]
    if best["weight"] == 0:
        notify("--cache tune: no weight of those tried is better than none, so the cache is left out (weight 0)")
    elif best["flatness"] == tried[-1] or best["weight"] == WEIGHTS[-1]:
        pair = f"flatness {best['flatness']:g} and weight {best['weight']:g}"
        notify(f"--cache tune: {pair}, at the end of what was tried: more may be better still")
    if not math.isfinite(best["perplexity"]):
        raise UserError("--cache tune", rule="finds no settings with which the loss on val is finite")
    return Cache(int(best["size"]), best["flatness"], best["weight"])


def _loss(trial: dict[str, float]) -> float:
    return trial["loss"] if math.isfinite(trial["loss"]) else math.inf


def window_figures(run: "runs.Run", data: Any, split: str, tokens: int) -> dict[str, Any]:
    """Loss and perplexity of a language model that reads every window of so many tokens from an empty state."""
    text = data.tokens(split)
    streams = max(1, min(_WINDOWS_TOGETHER, _TOKENS_TOGETHER // tokens))

    def windows() -> Iterator[TokenWindow]:
        """Streams of one window each, so that the text's last window alone is shorter."""
        begin = 0
        while begin < len(text):
            count = max(1, min(streams, (len(text) - begin) // tokens))
            piece = text[begin : begin + count * tokens]
            before = data.start_id if begin == 0 else int(text[begin - 1])
            yield from StreamLoader(piece, batch_size=count, bptt=tokens, start_id=before)
            begin += len(piece)

    return each_window_alone(run.task.eval(), windows()) | {"window": tokens}


def temperature_figures(run: "runs.Run", data: Any, split: str, temperature: float) -> dict[str, Any]:
    """Loss and perplexity of a language model whose logits are divided by a temperature, and the temperature."""
    figures = at_temperature(run.task.eval(), data.loader(split), temperature)
    if not math.isfinite(figures["perplexity"]):
        raise UserError("--temperature", temperature, f"makes the loss on {split} overflow", "raise it")
    return figures | {"temperature": temperature}


def tuned_temperature(run: "runs.Run", training: Any) -> float:
    """The temperature that is best on the beginnings of the run's own validation streams, 50,000 tokens in all."""

    def windows() -> Iterator[TokenWindow]:
        tokens = 0
        for window in training.loader("val"):
            yield window
            tokens += len(window.targets)
            if tokens >= _TEMPERATURE_TOKENS:
                return

    best = tune_temperature(run.task.eval(), windows)
    if not COLDEST * NARROW < best < HOTTEST / NARROW:
        than = "lower" if best < 1 else "higher"
        notify(f"--temperature tune: {best:.3g}, at the end of what was tried: a {than} one may be better still")
    return best


def training_statistics(run: "runs.Run", training: Any) -> GradientStatistics:
    """How large the gradients of a language model's weights are on the text it was trained on.

    Args:
        run: an open language run.
        training: the run's own data: measured on the text to be scored, they would tell the model about it.
    """
    text = training.tokens("train")
    streams = min(STREAMS, max(1, len(text) // WINDOW))
    windows = StreamLoader(text, batch_size=streams, bptt=WINDOW, start_id=training.start_id)
    with _gradients(run) as task:
        return gradient_statistics(task, itertools.islice(windows, _STATISTICS_BATCHES))


def dynamic_figures(
    run: "runs.Run", data: Any, split: str, dynamic: Dynamic, statistics: GradientStatistics
) -> dict[str, Any]:
    """Loss and perplexity of a language model that goes on learning from the text it is tested on.

    Args:
        run: an open language run.
        data: the data to evaluate on.
        split: of `data`.
        dynamic: the settings.
        statistics: from `training_statistics`.

    Raises:
        UserError: the model diverges.
    """
    with _gradients(run) as task:
        figures = dynamic_evaluation(task, _stream(data, split), statistics, **asdict(dynamic))
    if not math.isfinite(figures["perplexity"]):
        raise UserError("--dynamic", dynamic.lr, f"makes the model diverge on {split}", "lower it")
    return figures | asdict(dynamic) | {"gradient_batches": statistics.batches}


def tuned_dynamic(run: "runs.Run", training: Any, statistics: GradientStatistics) -> Dynamic:
    """The settings of dynamic evaluation that are best on the run's own validation text, its first 10,000 tokens."""

    def windows() -> Iterable[TokenWindow]:
        return itertools.islice(_stream(training, "val"), _TUNING_WINDOWS)

    with _gradients(run) as task:
        best = tune_dynamic_evaluation(task, windows, statistics)[0]
    return Dynamic(best["lr"], best["decay"], best["epsilon"])


@contextlib.contextmanager
def _gradients(run: "runs.Run") -> Iterator[Any]:
    """A run's task, whose weights may have gradients for a while."""
    task = run.task.eval()
    task.requires_grad_(True)
    try:
        with torch.backends.cudnn.flags(enabled=False):  # it has no backward pass in evaluation mode
            yield task
    finally:
        task.requires_grad_(False)


def _stream(data: Any, split: str) -> Iterable[TokenWindow]:
    """One stream of a split in short windows: the sooner it learns from what it read, the more it gains."""
    return StreamLoader(data.tokens(split), batch_size=1, bptt=WINDOW, start_id=data.start_id)
