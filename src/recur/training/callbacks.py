"""Lightning callbacks, and the factories by which `conf/callbacks` switches Lightning's own on and off."""

import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt, Le, Lt
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger

from recur.cli import going_on_unread
from recur.data.corpus import prompt_ids, readable
from recur.errors import UserError
from recur.render import escape_controls
from recur.runs import journal
from recur.runs.metrics import METRICS, device_name, format_value
from recur.tasks.base import Stepping, skipped
from recur.training import lightning_internals as internals


class _EarlyStopping(EarlyStopping):
    """Lightning's, whose patience is the one that is set now, not the one of the checkpoint that a run goes on from."""

    @property
    def state_key(self) -> str:
        """Under the name of Lightning's own, as earlier versions kept it."""
        return super().state_key.removeprefix("_")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all else."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def early_stopping(monitor: str, mode: str, patience: Annotated[int, Ge(0)] | None) -> EarlyStopping | None:
    """Stop after `patience` validations in a row without improvement, with 0 after the first; None for None.

    One that is NaN is none either: a metric may not be defined for what a validation saw.
    """
    if patience is None:
        return None
    # After each validation: an epoch in whose middle a run goes on with other data ends without one.
    # What is measured in training is whole only there.
    at_epoch_end = monitor.startswith("train/")
    settings: dict[str, Any] = {"check_finite": False, "check_on_train_epoch_end": at_epoch_end}
    return _EarlyStopping(monitor, mode=mode, patience=patience, **settings)


class _OnTheDevice(WeightAveraging):
    """An average that lies where the weights are trained: Lightning makes it before it has moved the weights there."""

    def check_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what no average can be taken with.

        Raises:
            UserError: a second average, which would swap this one in and out as if it were the weights, or weights in
                16 bits, in which a share of a thousandth is rounded away.
        """
        averages = [part for part in trainer.callbacks if isinstance(part, WeightAveraging)]  # type: ignore[attr-defined]
        if len(averages) > 1:
            remedy = "set callbacks.ema.decay=null or callbacks.averaging=null"
            raise UserError("callbacks.ema and callbacks.averaging", rule="are two averages", remedy=remedy)
        if str(trainer.precision) in ("bf16-true", "16-true"):
            rule = "keeps the weights in 16 bits, in which their average would stand still"
            raise UserError("trainer.precision", trainer.precision, rule, "set bf16-mixed, or callbacks.ema.decay=null")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move it; the count of averages, which the host looks at, stays."""
        if self._average_model is not None:
            self._average_model.module.to(trainer.strategy.root_device)


class _Ema(_OnTheDevice):
    """The average, which leaves skipped steps out and, once training is over, the weights alone.

    Lightning's own takes several passes over each tensor, and averages whole numbers (counts of n-grams), too. torch's
    moves the count of steps to the device at each one and has the host wait for it; here the host knows it. Until
    `start_step` the average is the weights of the last step: a run that ends before has trained all the same.
    """

    def __init__(self, decay: float, start_step: int) -> None:
        super().__init__(use_buffers=False)
        self._decay, self._start_step = decay, start_step

    @torch.no_grad()
    def _update(self, pl_module: pl.LightningModule) -> None:
        """Add the present weights to the average, and take over the buffers."""
        average: Any = self._average_model
        share = 1 - self._decay if int(average.n_averaged) > self._start_step else 1.0
        for averaged, weight in zip(average.module.parameters(), pl_module.parameters(), strict=True):
            averaged.lerp_(weight, share)
        for kept, buffer in zip(average.module.buffers(), pl_module.buffers(), strict=True):
            kept.copy_(buffer)
        average.n_averaged += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, unless the step was skipped."""
        if trainer.global_step > self._latest_update_step and not skipped(pl_module):
            self._update(pl_module)
        self._latest_update_step = trainer.global_step  # in the checkpoint, unlike the task's own word for it

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show validation the averaged weights, while training."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the weights in training."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)


@contextlib.contextmanager
def averaged_weights(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Give the model the weights that were validated, averages where there are some, for what comes after."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
    for callback in averages:
        callback.on_validation_epoch_start(trainer, pl_module)
    try:
        yield
    finally:
        for callback in averages:
            callback.on_validation_epoch_end(trainer, pl_module)


def weight_ema(
    decay: Annotated[float, Gt(0), Lt(1)] | None, start_step: Annotated[int, Ge(0)]
) -> WeightAveraging | None:
    """Exponential moving average of the weights, which validation, checkpoints and test see; None for None."""
    if decay is None:
        return None
    return _Ema(decay, start_step)


class PlannedNoise(Callback):
    """Draws every batch's dropout masks from (seed, rank, epoch, batch) and from nothing else.

    So a run that was killed and resumed, in the middle of an epoch too, ends as one that was not; ranks share their
    weights and not their masks. (Lightning saves no generator's state.)

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the generators of this process."""
        place = f"{self._seed}/{trainer.global_rank}/{trainer.current_epoch}/{batch_idx}"
        seed = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=7).digest())
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats three stacks for devices never used
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)


class OwnValues(Callback):
    """Has each point of the training curves show its own step, also where a batch without labels has no loss."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Drop the values of the step that was written before, at one that is written."""
        begins = batch_idx % trainer.accumulate_grad_batches == 0  # a step
        if begins and (trainer.global_step + 1) % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            internals.forget_step_values(trainer)


class Throughput(Callback):
    """Logs `train/tokens_per_second`: tokens trained on over time spent training, loading included, validation not.

    A resumed run counts on, on other numbers of ranks, too: all lives' tokens and seconds are in it.

    Attributes:
        tokens: trained on so far by all ranks, each of which has about as many.
        seconds: spent on them.
        flop: operations of the matrix products on them, as far as the task counts them.
        places: on which they were trained: device, number of ranks and precision of each.
        trained: whether this process has trained.
    """

    def __init__(self) -> None:
        self.tokens, self.seconds, self.flop = 0, 0.0, 0.0
        self.places: list[list[Any]] = []
        self.trained = False
        self._former_wall, self._started = 0.0, time.monotonic()
        self._mark, self._stopped = 0.0, False
        self._window = (0, 0.0)
        self._of_one_rank = False  # whether what was loaded is of one rank, as earlier versions counted

    def since(self, started: float) -> None:
        """Count the run from there, a `time.monotonic()`: its data is read before there are callbacks."""
        self._started = started

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far, so that a resumed run counts on."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "flop": self.flop,
            "wall_seconds": self.wall_seconds,
            "all_ranks": True,
            "places": self.places,
        }

    @property
    def wall_seconds(self) -> float:
        """Since the run began, without what was lost after the checkpoint from which it goes on."""
        return self._former_wall + time.monotonic() - self._started

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.flop = state_dict.get("flop", math.nan)  # a run from before they were counted: not known
        self._window = (self.tokens, self.seconds)
        self._former_wall = state_dict["wall_seconds"]
        self._of_one_rank = "all_ranks" not in state_dict
        self.places = list(state_dict.get("places", []))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count what all ranks did where only one's is known."""
        if self._of_one_rank:
            self.tokens, self.flop = self.tokens * trainer.world_size, self.flop * trainer.world_size
            self._window, self._of_one_rank = (self.tokens, self.seconds), False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock: a run resumed in the middle of an epoch does not start one."""
        self._mark, self._stopped = time.perf_counter(), False
        self.trained = True
        here = [device_name(pl_module.device), trainer.world_size, str(trainer.precision)]
        if here not in self.places:
            self.places.append(here)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._mark, self._stopped = time.perf_counter(), False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.seconds += time.perf_counter() - self._mark

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it stand until other callbacks have drawn and saved what was validated."""
        self._stopped = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start it again."""
        if self._stopped:
            self._mark, self._stopped = time.perf_counter(), False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log the rate of the last few."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now
        count = batch.text.data.numel() * trainer.world_size
        self.tokens += count
        if isinstance(pl_module, Stepping):
            self.flop += pl_module.flop_a_token() * count
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if trainer.global_step % every == 0 and not internals.accumulates(trainer):  # the step that is written
            tokens, seconds = self.tokens - self._window[0], self.seconds - self._window[1]
            self._window = (self.tokens, self.seconds)
            pl_module.log("train/tokens_per_second", tokens / max(seconds, 1e-9), prog_bar=True, batch_size=1)


class Progress(TQDMProgressBar):
    """A bar on a terminal, and a plain line an epoch there and everywhere else; epochs count from 1 in both."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self._interactive = sys.stderr.isatty()
        self._epoch: tuple[int, float] | None = None
        self._started = 0.0
        self._validated = False  # in the present epoch
        self._bar_open = False
        if not self._interactive:
            self.disable()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What the bar shows: short names, whole tokens a second."""
        shown: dict[str, Any] = {}
        for name, value in super().get_metrics(trainer, pl_module).items():
            if name == "train/tokens_per_second":
                shown["tokens/s"] = f"{value:,.0f}"
            elif name != "v_num":
                shown[name.removeprefix("train/")] = value
        return shown

    def on_train_start(self, *arguments: Any) -> None:
        """Start the clock: a run resumed in the middle of an epoch does not start one."""
        super().on_train_start(*arguments)
        self._started = time.monotonic()
        self._bar_open = self._interactive

    def on_train_epoch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Print how the last epoch went; only now are its metrics complete."""
        self._print_epoch(trainer)
        self._started = time.monotonic()
        super().on_train_epoch_start(trainer, *arguments)
        if self._bar_open:
            self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch was validated: Lightning keeps showing the figures of the last validation."""
        super().on_validation_end(trainer, pl_module)
        self._validated = self._validated or (trainer.state.fn == "fit" and not trainer.sanity_checking)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the epoch's clock."""
        super().on_train_epoch_end(trainer, pl_module)
        self._epoch = (trainer.current_epoch, time.monotonic() - self._started)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print how the last epoch went, below the bar."""
        super().on_train_end(trainer, pl_module)
        self._bar_open = False
        self._print_epoch(trainer)

    def _print_epoch(self, trainer: pl.Trainer) -> None:
        if self._epoch is None or not trainer.is_global_zero:
            return
        epoch, seconds = self._epoch
        self._epoch = None
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        line = epoch_line(epoch, seconds, metrics, validated=self._validated)
        self._validated = False
        with going_on_unread():
            if self._bar_open:
                self.print(line)
            else:
                print(line, flush=True)


def epoch_line(epoch: int, seconds: float, metrics: dict[str, float], *, validated: bool) -> str:
    """How an epoch went, in one line.

    Args:
        epoch: from 0.
        seconds: it took.
        metrics: by full name.
        validated: whether the figures of the validation split are this epoch's.
    """
    minutes, rest = divmod(round(seconds), 60)
    parts = [f"epoch {epoch + 1:>3}", f"{minutes}m {rest:02d}s"]
    shown = list(dict.fromkeys(metric.name for metric in METRICS if metric.in_line))
    for title, prefix in (("train", "train/epoch_"), ("val", "val/")):
        if f"{prefix}loss" in metrics and (validated or title == "train"):
            figures = [
                f"{name} {format_value(f'{prefix}{name}', metrics[f'{prefix}{name}'])}"
                for name in shown
                if f"{prefix}{name}" in metrics
            ]
            parts.append(f"{title} {' '.join(figures)}")
    if "train/tokens_per_second" in metrics:
        parts.append(f"{metrics['train/tokens_per_second']:,.0f} tokens/s")
    return " | ".join(parts)


class NonMonotonicAveraging(_OnTheDevice):
    """NT-ASGD (Merity, Keskar & Socher 2018): average the weights of all steps once validation has stopped improving.

    Averaging begins when the monitored loss is worse than the best of all but the last `interval` validations. From
    then on validation, checkpoints and test see the plain mean of the weights since; training goes on with its own.

    Args:
        monitor: loss to watch.
        interval: validations without a new best before averaging begins (the paper's n); 0 averages from the first
            step on, as Polyak & Juditsky (1992).
    """

    def __init__(self, monitor: str = "val/loss", interval: Annotated[int, Ge(0)] = 5) -> None:
        # The default average is the equally weighted one. Buffers have whole numbers, of which there is no mean.
        super().__init__(use_buffers=False)
        self.monitor, self.interval = monitor, interval
        self.losses: list[float] = []
        self.began_at: int | None = None  # optimizer steps taken before averaging began

    @property
    def _averaging(self) -> bool:
        return internals.averaged_steps(self) > 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step, once averaging has begun."""
        return step_idx is not None and self.began_at is not None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin averaging at once where nothing is waited for."""
        super().on_train_start(trainer, pl_module)
        if not self.interval and self.began_at is None:
            self.began_at = self._latest_update_step = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin averaging when the loss has not improved for long enough."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self.monitor not in trainer.callback_metrics:
            return
        loss = float(trainer.callback_metrics[self.monitor])
        if self.began_at is None and len(self.losses) > self.interval and loss > min(self.losses[: -self.interval]):
            self.began_at = self._latest_update_step = trainer.global_step
            if trainer.is_global_zero:
                with going_on_unread():
                    print(f"averaging weights from step {trainer.global_step}", flush=True)
        self.losses.append(loss)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average, unless the step was skipped."""
        if skipped(pl_module):
            self._latest_update_step = trainer.global_step  # in the checkpoint, unlike the task's own word for it
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    # Until the first average there is none to swap in, save or keep: Lightning would take the initial weights.

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show validation the averaged weights."""
        if self._averaging and trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the weights in training."""
        if self._averaging and trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the averaged weights."""
        if self._averaging:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the averaged weights where the weights are looked for."""
        if self._averaging:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on averaging where that had begun."""
        if "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        elif self._average_model is not None:  # for the sizes of what was counted in the training data
            self._average_model.module.load_state_dict(checkpoint["state_dict"])

    def state_dict(self) -> dict[str, Any]:
        """What decides when to begin."""
        return {**super().state_dict(), "losses": list(self.losses), "began_at": self.began_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state_dict)
        self.losses, self.began_at = list(state_dict["losses"]), state_dict["began_at"]


class Samples(Callback):
    """Writes a text of the language model to TensorBoard after every validation, always from the same random numbers.

    A model that reads from the end of texts writes what stands before the prompt.

    Args:
        prompt: text to begin with; None begins where a text begins.
        tokens: length of the sample.
        temperature: divides the logits; 0 takes the likeliest token each time.

    Attributes:
        last: the last sample, prompt included.
    """

    def __init__(
        self,
        prompt: str | None,
        tokens: Annotated[int, Ge(0), Le(100_000)],
        temperature: Annotated[float, Ge(0), Lt(math.inf)],
    ) -> None:
        self.prompt, self.tokens, self.temperature = prompt, tokens, temperature
        self.last: str | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sample on rank 0."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero or self.tokens < 1:
            return
        order = slice(None, None, -1 if data.reverse else 1)
        ids = prompt_ids(data.tokenizer, self.prompt or "")[order]
        first: list[int] = [] if pl_module.window is not None else [data.start_id]  # with which streams alone begin
        prompt = torch.tensor([*first, *ids], dtype=torch.int64)[:, None]  # (tokens, one sample)
        generator = torch.Generator(pl_module.device).manual_seed(0)
        with averaged_weights(trainer, pl_module):
            drawn = pl_module.generate(  # type: ignore[operator]
                prompt, temperature=self.temperature, generator=generator, start_id=data.start_id
            )
            made = [int(token) for token in islice(drawn, self.tokens)]
        self.last = readable(data.tokenizer, [*ids, *made][order])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                shown = escape_controls(self.last).replace("\n", "\n    ")  # indented it is shown as it stands
                logger.experiment.add_text("sample", f"    {shown}", trainer.global_step)


class ValidationLog(pl.Callback):
    """Adds every validation to `history.jsonl`.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was measured, on rank 0, and what the epoch trained on so far, which Lightning logs later."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        own = pl_module.epoch_figures() if isinstance(pl_module, Stepping) else {}
        if not trainer.is_global_zero:
            return
        metrics = {
            name: float(value)
            for name, value in {**trainer.callback_metrics, **own}.items()
            if name.startswith(("val/", "train/"))
        }
        epoch, done = progress(trainer)
        entry = {
            "step": trainer.global_step,
            "epoch": round(epoch, 3),
            "done": round(done, 4),
            "seconds": round(time.monotonic() - self._started, 2),
            "training": "epoch so far",  # earlier versions had that of the epoch before
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        }
        journal.append_validation(self._folder, entry)


def progress(trainer: pl.Trainer) -> tuple[float, float]:
    """Epochs trained so far, and the part of the whole run that they are."""
    within = trainer.fit_loop.epoch_loop.batch_progress.current.ready / max(1, trainer.num_training_batches)
    epoch = trainer.current_epoch + min(1.0, within)
    parts = [0.0]
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        parts.append(epoch / trainer.max_epochs)
    if trainer.max_steps > 0:
        parts.append(trainer.global_step / trainer.max_steps)
    return epoch, min(1.0, max(parts))
