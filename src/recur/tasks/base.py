"""What both tasks share: a step whose gradient is clipped, logged and may be refused, sums that survive a resume.

Protocols say what callbacks and tasks ask of each other: `GradientObserver`, `Restorable`.

To add a metric, compute it in the task of its family under the name that `recur.runs.metrics.METRICS` has for it.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torchmetrics import Metric

from recur.errors import UserError
from recur.nn.arguments import Remembering
from recur.nn.costs import multiplications
from recur.nn.torch_internals import unscales_gradients
from recur.tasks.schedulers import StepPlan


@runtime_checkable
class GradientObserver(Protocol):
    """A callback that sees each step's gradient norm and may have the step left out."""

    def on_gradient_norm(self, trainer: pl.Trainer, pl_module: pl.LightningModule, norm: Tensor) -> bool:
        """Whether the step must not be made; called after clipping, with the norm before it."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """A task that can undo what a step changed besides the optimizer's work."""

    def snapshot(self) -> list[Tensor]:
        """What a step that is left out must not change."""
        ...

    def restore(self, before: list[Tensor]) -> None:
        """Put a snapshot back."""
        ...


class Taken(NamedTuple):
    """The plan of the optimizer steps of a run that is gone on with, and how far it is.

    Attributes:
        per_epoch: steps that an epoch had.
        more: steps of the whole run beyond the epochs times these, since earlier epochs had others.
        steps: that were taken.
        epochs: that are over.
    """

    per_epoch: int
    more: int
    steps: int
    epochs: int


def step_plan(trainer: pl.Trainer, before: Taken | None = None) -> StepPlan:
    """Count the optimizer steps of the whole run.

    An epoch has others than before where a run goes on with another number of processes, or with other data.

    `Trainer.estimated_stepping_batches` would set the loaders up early, and Lightning 2.6 then drops a resumed loader's
    state (PL#20550); so the count is made here, from the length of the loader.

    Args:
        trainer: with the data.
        before: of a run that is gone on with.

    Raises:
        UserError: neither `max_epochs` nor `max_steps` bounds the run.
    """
    loader: Any = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
    batches = len(loader)
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    epochs = trainer.max_epochs
    if (epochs is None or epochs < 0) and trainer.max_steps < 0:
        raise UserError("trainer.max_epochs", epochs, "must end the run for this scheduler", "set it, or max_steps")
    more = 0
    if before is not None:
        more = before.more if before.per_epoch == per_epoch else before.steps - before.epochs * per_epoch
    totals = [epochs * per_epoch + more] if epochs is not None and epochs >= 0 else []
    if trainer.max_steps >= 0:
        totals.append(trainer.max_steps)
    tried = before is not None or not (isinstance(limit, float) and limit == 1.0)  # the whole number 1 is one batch
    return StepPlan(min(totals), per_epoch, trainer.check_val_every_n_epoch or 1, more, tried)


class Sums(Metric, ABC):
    """Sums over an epoch, each a number, which go into a checkpoint and come back out of it."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Follow a module to its device, and to a wider dtype, but to no narrower one.

        torchmetrics guards its states against `half` and `bfloat16`, not against `to(dtype)`, which Lightning's
        `bf16-true` calls: a sum in bfloat16 stops growing after some 256 numbers.
        """

        def kept_wide(value: Tensor) -> Tensor:
            moved = fn(value)
            wide = torch.promote_types(moved.dtype, value.dtype) == moved.dtype
            return moved if wide else value.to(moved.device)

        return super()._apply(kept_wide, exclude_state)

    @abstractmethod
    def update_with_nothing(self) -> None:
        """An update that adds nothing: torchmetrics warns of the value of a metric that was never updated."""


class Mean(Sums):
    """A weighted mean. torchmetrics' own drops what is NaN, and so hides it; asked to keep it, it drops the weights."""

    mean_value: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean_value", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: float) -> None:
        """Add a value, a number, with its weight."""
        self.mean_value += value.to(self.mean_value) * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.mean_value / self.weight

    def update_with_nothing(self) -> None:
        """Add nothing."""
        self.update(torch.zeros_like(self.mean_value), 0)


def reset_metrics(task: nn.Module) -> None:
    """Forget what metrics have summed up: in an evaluation that was interrupted, or in an earlier training."""
    for part in task.modules():
        if isinstance(part, Metric):
            part.reset()


def save_metrics(task: pl.LightningModule, metrics: Sequence[Sums], checkpoint: dict[str, Any]) -> None:
    """Put what an epoch's training metrics have summed up so far into a checkpoint, each rank's own."""
    values: Any = torch.stack([value.double() for metric in metrics for _, value in _states(metric)])
    if task.trainer.world_size > 1:
        values = task.all_gather(values)
    checkpoint["train_metrics"] = values.reshape(task.trainer.world_size, -1).cpu()  # (ranks, sums)


def load_metrics(task: pl.LightningModule, metrics: Sequence[Sums], checkpoint: dict[str, Any]) -> None:
    """Go on summing up from there. Another number of ranks cannot be in the middle of an epoch: it sums up anew."""
    saved = checkpoint.get("train_metrics")
    if task._trainer is None:  # opened without one, by Lightning's load_from_checkpoint
        return
    if saved is None or len(saved) != task.trainer.world_size:
        return
    values = iter(saved[task.trainer.global_rank])
    for metric in metrics:
        metric.update_with_nothing()
        for name, value in _states(metric):
            setattr(metric, name, next(values).to(value))


def _states(metric: Sums) -> list[tuple[str, Tensor]]:
    """A metric's sums by name, each a number."""
    return [(name, value) for name, value in metric.metric_state.items() if isinstance(value, Tensor)]


def build_optimizer(make: Callable[..., Optimizer], *groups: Iterable[nn.Parameter]) -> Optimizer:
    """Build an optimizer over what is trainable; on a CPU, one that takes its step in a single pass over memory.

    Each of the groups is one of the optimizer's, also where nothing in it is trainable.

    torch's Adam, AdamW and SGD have such a step (`fused`), several times as fast for large embeddings, and do not take
    it on a CPU by themselves. Elsewhere torch chooses: on a GPU a fused step cannot be clipped under float16.
    """
    lists = [[parameter for parameter in group if parameter.requires_grad] for group in groups]
    trainable = [parameter for group in lists for parameter in group]
    optimizer = make(trainable if len(lists) == 1 else [{"params": group} for group in lists])
    undecided = all(optimizer.defaults.get(name, False) is None for name in ("fused", "foreach"))
    if undecided and not optimizer.defaults.get("differentiable") and all(p.device.type == "cpu" for p in trainable):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


def follow_rate(optimizer: Optimizer) -> None:
    """Give torch's ASGD the rate of the step that it is about to take, from its groups' learning rates.

    It steps with `eta`, made from the learning rate when the step before was taken: each change of a schedule would
    come a step late. Where the rate does not change this changes nothing.
    """
    if not isinstance(optimizer, torch.optim.ASGD):
        return
    for group in optimizer.param_groups:
        for state in (optimizer.state[parameter] for parameter in group["params"] if parameter in optimizer.state):
            rate, steps = float(group["lr"]), float(state["step"])
            state["eta"].fill_(rate / (1 + group["lambd"] * rate * steps) ** group["alpha"])


class Stepping(Remembering, pl.LightningModule):
    """What the steps of both tasks have in common.

    Attributes:
        skipped: whether the last step was not made, because it had no finite gradient.
        draws: whether figures of validation become points of the loggers' curves.
    """

    skipped = False
    draws = True
    net: nn.Module
    _multiplications = 0  # counted once
    _plan: StepPlan | None = None
    _taken: Taken | None = None
    _validated = False  # since the last step of a schedule that looks at validations

    def flop_a_token(self) -> float:
        """Operations a token in the matrix products of the last training step: one product forward, two backward."""
        if not self._multiplications:
            self._multiplications = multiplications(self.net) - self._multiplications_a_text()
        return 6.0 * self._multiplications - 2.0 * self._inputs_without_gradient()

    def _multiplications_a_text(self) -> int:
        """Entries of matrices that multiply once a text and not once a token: too few to count."""
        return 0

    def _inputs_without_gradient(self) -> int:
        """Multiplications a token that a backward pass to word vectors would take, where these are frozen."""
        embedding, recurrent = (getattr(self.net, name, None) for name in ("embedding", "recurrent"))
        if embedding is None or recurrent is None or embedding.weight.requires_grad:
            return 0
        weights = dict(recurrent.named_parameters())
        if any(name.startswith("weight_round") for name in weights):  # a mogrifier's gates of x learn through it
            return 0
        return sum(own.numel() for name, own in weights.items() if name.startswith("weight_ih_l0"))

    def prepare(self, data: Any) -> None:
        """Take from the training data what cannot be learnt by steps; called once, before the first one."""

    def on_fit_start(self) -> None:
        """Refuse an optimizer whose gradients would be clipped and logged multiplied by the scale of the loss.

        Raises:
            UserError: one that divides them in its own step, beside float16's scaler.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and any(unscales_gradients(one) for one in self.trainer.optimizers):
            rule = f"has gradients that cannot be clipped where trainer.precision={self.trainer.precision}"
            raise UserError("optimizer.fused", True, rule, "leave it out, or set trainer.precision=bf16-mixed")

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, log the norm before clipping, and ask the callbacks whether this step may be made."""
        norm = clip_gradients(self.parameters(), gradient_clip_val, gradient_clip_algorithm)
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        observers = [callback for callback in callbacks if isinstance(callback, GradientObserver)]
        self.skipped = any(observer.on_gradient_norm(self.trainer, self, norm) for observer in observers)
        if self.skipped:
            for parameter in self.parameters():
                parameter.grad = None  # an optimizer leaves alone what has none, and counts no step
        else:
            self.log_step("train/gradient_norm", norm)
            scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
            self.skipped = scaled and not bool(torch.isfinite(norm))  # its scaler leaves the step out

    def of_group(self, loss: Tensor, batch_idx: int) -> Tensor:
        """A batch's loss, so that a step's gradient is the mean over its batches, as many as these are.

        Lightning divides by `accumulate_grad_batches`, also where an epoch ends with fewer batches than that.
        """
        trainer = self._trainer
        if trainer is None or (most := trainer.accumulate_grad_batches) == 1:
            return loss
        left = trainer.num_training_batches - batch_idx // most * most
        return loss * (most / left) if 0 < left < most else loss

    def log(
        self, name: str, value: Any, prog_bar: bool = False, logger: bool | None = None, *more: Any, **settings: Any
    ) -> None:
        """Log as Lightning does, and to no logger what is validated while `draws` is false."""
        drawn = logger if self.draws or not name.startswith("val/") else False
        super().log(name, value, prog_bar, drawn, *more, **settings)

    def log_step(self, name: str, value: Any, **settings: Any) -> None:
        """Log a training step's value, if this step is one that is written: logging in vain takes a millisecond."""
        if (self.trainer.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self.log(name, value, **settings)

    def plan_steps(self) -> StepPlan:
        """The optimizer steps of the whole run, for a schedule; see `step_plan`."""
        self._plan = step_plan(self.trainer, self._taken)
        return self._plan

    def setup(self, stage: str) -> None:
        """Forget an earlier training, before a fit: what it goes on from, if anything, is loaded after this."""
        if stage == "fit":
            self._taken, self._plan, self._validated = None, None, False
            reset_metrics(self)

    def on_train_start(self) -> None:
        """Set the rate for the present step: of a run that goes on it is the former schedule's, at its end nothing."""
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, LambdaLR):
                parts = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
                for group, rate, factor in parts:
                    group["lr"] = rate * factor(schedule.last_epoch)
            elif isinstance(schedule, OneCycleLR):
                with warnings.catch_warnings():  # the rate is asked for between steps, and sets the momentum on the way
                    warnings.filterwarnings("ignore", message="To get the last learning rate")
                    rates = schedule.get_lr()
                for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate

    def on_validation_end(self) -> None:
        """Note that there is a new figure."""
        self._validated = self._validated or not self.trainer.sanity_checking

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take the step; see `follow_rate`."""
        follow_rate(optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Take the schedule's step.

        One counted in optimizer steps waits where the optimizer took none, and one that looks at a figure of validation
        where there is no new one: Lightning would show it the last one again.
        """
        config = next(c for c in self.trainer.lr_scheduler_configs if c.scheduler is scheduler)
        if self.skipped and config.interval == "step":
            return
        if config.reduce_on_plateau and str(config.monitor).startswith("val/"):
            if not self._validated:
                return
            self._validated = False
        super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of the epoch so far, of every rank, and what schedules depend on."""
        save_metrics(self, self.training_metrics(), checkpoint)
        plan = None if self._plan is None else {"per_epoch": self._plan.per_epoch, "more": self._plan.more}
        checkpoint["schedule"] = {"plan": plan, "validated": self._validated}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there, with this rank's sums."""
        load_metrics(self, self.training_metrics(), checkpoint)
        before = checkpoint.get("schedule") or {}
        self._validated = bool(before.get("validated"))
        if plan := before.get("plan"):
            self._taken = Taken(plan["per_epoch"], plan["more"], checkpoint["global_step"], checkpoint["epoch"])

    def training_metrics(self) -> Sequence[Sums]:
        """What an epoch sums up."""
        raise NotImplementedError

    def epoch_figures(self) -> dict[str, Tensor]:
        """Means over what the present epoch has trained on so far, of all ranks, which must all ask; by name."""
        return {}

    def snapshot(self) -> list[Tensor]:
        """What a step that is skipped must leave behind unchanged, besides what the optimizer changes."""
        return [value.clone() for metric in self.training_metrics() for _, value in _states(metric)]

    def restore(self, before: list[Tensor]) -> None:
        """Put that back."""
        values = iter(before)
        for metric in self.training_metrics():
            for name, _ in _states(metric):
                setattr(metric, name, next(values))


def skipped(task: pl.LightningModule) -> bool:
    """Whether a task's last step was not made."""
    return isinstance(task, Stepping) and task.skipped


def clip_gradients(parameters: Any, value: float | None, algorithm: str | None) -> torch.Tensor:
    """Clip gradients in place and return their total L2 norm before clipping, from one pass.

    Args:
        parameters: whose `.grad` to clip.
        value: largest norm or absolute value; None or 0 clips nothing.
        algorithm: `norm` or `value`.

    Raises:
        UserError: a negative `value`.
    """
    if value is not None and value < 0:
        raise UserError("trainer.gradient_clip_val", value, "must be 0 or more", "null clips nothing")
    parameters = [p for p in parameters if p.grad is not None]
    if value and algorithm == "value":
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.nn.utils.clip_grad_value_(parameters, value)
        return norm
    return torch.nn.utils.clip_grad_norm_(parameters, value or math.inf)
