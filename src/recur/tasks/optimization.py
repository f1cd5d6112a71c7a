"""What both tasks do around a step: schedules counted in optimizer steps, clipping that reports the norm.

A schedule is a function `(optimizer, plan) -> Lightning scheduler config or None`; its other arguments are the keys of
`conf/scheduler/*.yaml`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torchmetrics import Metric


class StepPlan(NamedTuple):
    """How many optimizer steps the run will take.

    Attributes:
        total: in the whole run.
        per_epoch: in one epoch.
    """

    total: int
    per_epoch: int


def step_plan(trainer: pl.Trainer) -> StepPlan:
    """Count the optimizer steps ahead.

    `Trainer.estimated_stepping_batches` would set the loaders up early, and Lightning 2.6 then drops a resumed loader's
    state (PL#20550); so the count is made here, from the length of the loader.

    Raises:
        ValueError: neither `max_epochs` nor `max_steps` bounds the run.
    """
    loader: Any = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    batches = len(loader)
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    epochs = trainer.max_epochs
    if (epochs is None or epochs < 0) and trainer.max_steps < 0:
        raise ValueError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    totals = [epochs * per_epoch] if epochs is not None and epochs >= 0 else []
    if trainer.max_steps >= 0:
        totals.append(trainer.max_steps)
    return StepPlan(min(totals), per_epoch)


def _each_step(scheduler: lr_scheduler.LRScheduler) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "frequency": 1}


def none(optimizer: Optimizer, plan: StepPlan) -> None:
    """Keep the learning rate."""


def step(optimizer: Optimizer, plan: StepPlan, *, every_epochs: int, gamma: float) -> dict[str, Any]:
    """Multiply the learning rate by `gamma` every `every_epochs` epochs."""
    if every_epochs < 1:
        raise ValueError(f"scheduler.every_epochs must be at least 1, got {every_epochs}")
    _check_factor(gamma=gamma)
    return {"scheduler": lr_scheduler.StepLR(optimizer, every_epochs, gamma), "interval": "epoch"}


def plateau(
    optimizer: Optimizer, plan: StepPlan, *, monitor: str, mode: str, factor: float, patience: int, min_lr: float
) -> dict[str, Any]:
    """Multiply the learning rate by `factor` when `monitor` has not improved for more than `patience` validations."""
    if mode not in ("max", "min"):
        raise ValueError(f"scheduler.mode must be max or min, got {mode!r}")
    if not 0 < factor < 1:
        raise ValueError(f"scheduler.factor must lie in (0, 1), got {factor}")
    for name, value in (("patience", patience), ("min_lr", min_lr)):
        if not value >= 0:
            raise ValueError(f"scheduler.{name} must be at least 0, got {value}")
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode=mode,  # type: ignore[arg-type]
        factor=factor,
        patience=patience,
        threshold=0.0,
        min_lr=min_lr,
    )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor, "strict": False}


def _check_factor(**factors: float) -> None:
    for name, value in factors.items():
        if not 0 < value < math.inf:
            raise ValueError(f"scheduler.{name} must be above 0, got {value}")


def _check_parts(warmup: float, floor: float) -> None:
    if not 0 <= warmup < 1:
        raise ValueError(f"scheduler.warmup is a part of the run and must lie in [0, 1), got {warmup}")
    if not 0 <= floor <= 1:
        raise ValueError(f"scheduler.floor is a part of the learning rate and must lie in [0, 1], got {floor}")


def _warm_up(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (steps + 1))


def cosine(optimizer: Optimizer, plan: StepPlan, *, warmup: float, floor: float) -> dict[str, Any]:
    """Linear warm-up, then half a cosine down to `floor` times the learning rate (Loshchilov & Hutter 2017).

    Args:
        optimizer: whose learning rates to set.
        plan: steps of the run.
        warmup: part of all steps spent warming up, in [0, 1).
        floor: final learning rate as a part of the first, in [0, 1].
    """
    _check_parts(warmup, floor)
    warm = round(warmup * plan.total)

    def factor(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warm) / max(1, plan.total - warm)))
        return _warm_up(step, warm) * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)

    return _each_step(lr_scheduler.LambdaLR(optimizer, factor))


def linear(optimizer: Optimizer, plan: StepPlan, *, warmup: float, floor: float) -> dict[str, Any]:
    """Linear warm-up, then linearly down to `floor` times the learning rate; arguments as for `cosine`."""
    _check_parts(warmup, floor)
    warm = round(warmup * plan.total)

    def factor(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warm) / max(1, plan.total - warm)))
        return _warm_up(step, warm) * (1 - (1 - floor) * progress)

    return _each_step(lr_scheduler.LambdaLR(optimizer, factor))


def exponential(optimizer: Optimizer, plan: StepPlan, *, gamma: float) -> dict[str, Any]:
    """Multiply the learning rate by `gamma` after every optimizer step (Miyato et al. 2017 use .9998)."""
    _check_factor(gamma=gamma)
    return _each_step(lr_scheduler.ExponentialLR(optimizer, gamma))


def one_cycle(optimizer: Optimizer, plan: StepPlan, *, rise: float, start_div: float, end_div: float) -> dict[str, Any]:
    """One cycle (Smith & Topin 2018): up to the learning rate over `rise` of the run, then down.

    Args:
        optimizer: whose learning rate is the peak.
        plan: steps of the run.
        rise: part of all steps spent rising.
        start_div: the first learning rate is the peak divided by this.
        end_div: the last is the first divided by this.
    """
    if not 0 < rise < 1:
        raise ValueError(f"scheduler.rise is a part of the run and must lie in (0, 1), got {rise}")
    _check_factor(start_div=start_div, end_div=end_div)
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=plan.total + 1, pct_start=rise, div_factor=start_div, final_div_factor=end_div
    )
    return _each_step(scheduler)


def save_metrics(task: pl.LightningModule, metrics: Sequence[Metric], checkpoint: dict[str, Any]) -> None:
    """Put what an epoch's training metrics have summed up so far into a checkpoint, each rank's own."""
    values: Any = torch.stack([value.double() for metric in metrics for _, value in _states(metric)])
    if task.trainer.world_size > 1:
        values = task.all_gather(values)
    checkpoint["train_metrics"] = values.reshape(task.trainer.world_size, -1).cpu()  # (ranks, sums)


def load_metrics(task: pl.LightningModule, metrics: Sequence[Metric], checkpoint: dict[str, Any]) -> None:
    """Go on summing up from there. Another number of ranks cannot be in the middle of an epoch: it sums up anew."""
    saved = checkpoint.get("train_metrics")
    if saved is None or len(saved) != task.trainer.world_size:
        return
    values = iter(saved[task.trainer.global_rank])
    for metric in metrics:
        for name, value in _states(metric):
            setattr(metric, name, next(values).to(value))
        metric._update_count = 1  # else torchmetrics warns of a mean of nothing


def _states(metric: Metric) -> list[tuple[str, Tensor]]:
    """A metric's sums by name, each a number."""
    return [(name, value) for name, value in metric.metric_state.items() if isinstance(value, Tensor)]


class Stepping(pl.LightningModule):
    """What the steps of both tasks have in common.

    Attributes:
        skipped: whether the last step was not made, because it had no finite gradient.
    """

    skipped = False

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, log the norm before clipping, and ask the callbacks whether this step may be made."""
        norm = clip_gradients(self.parameters(), gradient_clip_val, gradient_clip_algorithm)
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        asked = [callback for callback in callbacks if hasattr(callback, "on_gradient_norm")]
        self.skipped = any(callback.on_gradient_norm(self.trainer, self, norm) for callback in asked)
        if self.skipped:
            for parameter in self.parameters():
                parameter.grad = None  # an optimizer leaves alone what has none, and counts no step
        else:
            self.log_step("train/gradient_norm", norm)

    def log_step(self, name: str, value: Any, **settings: Any) -> None:
        """Log a training step's value, if this step is one that is written: logging in vain takes a millisecond."""
        stepped = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        if (stepped + 1) % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self.log(name, value, **settings)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Take the schedule's step; one counted in optimizer steps waits where the optimizer took none."""
        configs = self.trainer.lr_scheduler_configs
        if self.skipped and any(c.scheduler is scheduler and c.interval == "step" for c in configs):
            return
        super().lr_scheduler_step(scheduler, metric)

    def training_metrics(self) -> list[Metric]:
        """What an epoch sums up."""
        raise NotImplementedError

    def snapshot(self) -> list[Tensor]:
        """What a step that is skipped must leave behind unchanged, besides what the optimizer changes."""
        return [value.clone() for metric in self.training_metrics() for _, value in _states(metric)]

    def restore(self, before: list[Tensor]) -> None:
        """Put that back."""
        values = iter(before)
        for metric in self.training_metrics():
            for name, _ in _states(metric):
                setattr(metric, name, next(values))


def clip_gradients(parameters: Any, value: float | None, algorithm: str | None) -> torch.Tensor:
    """Clip gradients in place and return their total L2 norm before clipping, from one pass.

    Args:
        parameters: whose `.grad` to clip.
        value: largest norm or absolute value; None or 0 clips nothing.
        algorithm: `norm` or `value`.

    Raises:
        ValueError: a negative `value`.
    """
    if value is not None and value < 0:
        raise ValueError(f"trainer.gradient_clip_val must be 0 or more, got {value}: null clips nothing")
    parameters = [p for p in parameters if p.grad is not None]
    if value and algorithm == "value":
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.nn.utils.clip_grad_value_(parameters, value)
        return norm
    return torch.nn.utils.clip_grad_norm_(parameters, value or math.inf)
