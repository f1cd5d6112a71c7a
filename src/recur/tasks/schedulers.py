"""Learning-rate schedules, counted in optimizer steps or epochs.

A schedule is a function `(optimizer, plan) -> Lightning scheduler config or None`; its other arguments are the keys of
`conf/scheduler/*.yaml`.
"""

import math
from typing import Any, NamedTuple

from torch.optim import Optimizer, lr_scheduler

from recur.errors import UserError


class StepPlan(NamedTuple):
    """How many optimizer steps the run will take.

    Attributes:
        total: in the whole run.
        per_epoch: in one epoch.
        validated_every: epochs from one validation to the next, at least 1.
        more: steps in `total` beyond the epochs times `per_epoch`; see `recur.tasks.base.Taken`.
        tried: whether a schedule that does nothing in so many steps is let pass: where epochs are cut short to try a
            config, and where a run goes on.
    """

    total: int
    per_epoch: int
    validated_every: int = 1
    more: int = 0
    tried: bool = False


def _each_step(scheduler: lr_scheduler.LRScheduler) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "frequency": 1}


def none(optimizer: Optimizer, plan: StepPlan) -> None:
    """Keep the learning rate."""


def step(optimizer: Optimizer, plan: StepPlan, *, every_epochs: int, gamma: float) -> dict[str, Any]:
    """Multiply the learning rate by `gamma` every `every_epochs` epochs."""
    if every_epochs < 1:
        raise UserError("scheduler.every_epochs", every_epochs, "must be at least 1")
    _check_factor(gamma=gamma)
    return {"scheduler": lr_scheduler.StepLR(optimizer, every_epochs, gamma), "interval": "epoch"}


def multistep(optimizer: Optimizer, plan: StepPlan, *, epochs: list[int], gamma: float) -> dict[str, Any]:
    """Multiply the learning rate by `gamma` after each of the given numbers of epochs."""
    wrong = [epoch for epoch in epochs if type(epoch) is not int or epoch < 1]
    if wrong or not epochs or len(set(epochs)) < len(epochs):
        raise UserError("scheduler.epochs", list(epochs), "must be different whole numbers of at least 1")
    if min(epochs) * plan.per_epoch + plan.more >= plan.total and not plan.tried:
        rule = f"all lie at or behind the run's end, epoch {math.ceil((plan.total - plan.more) / plan.per_epoch)}"
        raise UserError("scheduler.epochs", sorted(epochs), rule, "lower them, or train for more epochs")
    _check_factor(gamma=gamma)
    return {"scheduler": lr_scheduler.MultiStepLR(optimizer, sorted(epochs), gamma), "interval": "epoch"}


def plateau(
    optimizer: Optimizer, plan: StepPlan, *, monitor: str, mode: str, factor: float, patience: int, min_lr: float
) -> dict[str, Any]:
    """Multiply the learning rate by `factor` when `monitor` has not improved for more than `patience` validations.

    Of the validations within an epoch the last one counts.
    """
    if mode not in ("max", "min"):
        raise UserError("scheduler.mode", mode, "must be max or min")
    if not 0 < factor < 1:
        raise UserError("scheduler.factor", factor, "must lie in (0, 1)")
    for name, value in (("patience", patience), ("min_lr", min_lr)):
        if not value >= 0:
            raise UserError(f"scheduler.{name}", value, "must be at least 0")
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode=mode,  # type: ignore[arg-type]
        factor=factor,
        patience=patience,
        threshold=0.0,
        min_lr=min_lr,
    )
    # Lightning would step it after epochs without a validation, too, with the value of the last one; see
    # `Stepping.lr_scheduler_step` for those that are no whole epochs apart.
    when = {"interval": "epoch", "frequency": plan.validated_every}
    return {"scheduler": scheduler, **when, "monitor": monitor, "strict": False}


def _check_factor(**factors: float) -> None:
    for name, value in factors.items():
        if not 0 < value < math.inf:
            raise UserError(f"scheduler.{name}", value, "must be above 0 and finite")


def _check_parts(warmup: float, floor: float) -> None:
    if not 0 <= warmup < 1:
        raise UserError("scheduler.warmup", warmup, "is a part of the run and must lie in [0, 1)")
    if not 0 <= floor <= 1:
        raise UserError("scheduler.floor", floor, "is a part of the learning rate and must lie in [0, 1]")


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


class _OneCycle(lr_scheduler.OneCycleLR):
    """One cycle over the steps of this run, also where it goes on with a run that was to be shorter or longer."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in ("total_steps", "_schedule_phases")})


def one_cycle(optimizer: Optimizer, plan: StepPlan, *, rise: float, start_div: float, end_div: float) -> dict[str, Any]:
    """One cycle (Smith & Topin 2018): up to the learning rate over `rise` of the run, then down.

    Where the optimizer has momentum, or beta1, that goes the other way, from .95 to .85 and back; one without stays so.

    Args:
        optimizer: whose learning rate is the peak.
        plan: steps of the run.
        rise: part of all steps spent rising.
        start_div: the first learning rate is the peak divided by this.
        end_div: the last is the first divided by this.
    """
    if not 0 < rise < 1:
        raise UserError("scheduler.rise", rise, "is a part of the run and must lie in (0, 1)")
    _check_factor(start_div=start_div, end_div=end_div)
    peaks = [group["lr"] for group in optimizer.param_groups]
    # Left to itself torch gives momentum to an SGD of 0 and refuses an optimizer that knows none.
    momentum = all("betas" in group or group.get("momentum") for group in optimizer.param_groups)
    steps = plan.total + 1
    if rise * steps == 1:  # torch divides by the steps of the rise less one
        rise = math.nextafter(rise, 1)
    scheduler = _OneCycle(
        optimizer,
        peaks,
        total_steps=steps,
        pct_start=rise,
        cycle_momentum=momentum,
        div_factor=start_div,
        final_div_factor=end_div,
    )
    return _each_step(scheduler)
