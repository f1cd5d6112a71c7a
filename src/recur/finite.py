"""When numbers go wrong, or memory runs out: which batch it was, what came before, and what to try.

The gradient's norm, which is taken in every step anyway, is looked at before the step is made. It is not finite as soon
as one gradient of one rank is not, and the ranks share it: they decide alike without asking each other.
"""

import re
from collections import deque
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from recur.stopping import tell

_SHOWN = 20  # rows named in a message


class NotFiniteError(ValueError):
    """A loss or gradient that is no number."""


class Finite(Callback):
    """Stops a run, or skips a step, whose loss or gradient is NaN or infinite.

    A skipped step leaves weights, optimizer, schedule and averages as they were; batches go on. The task asks
    (`on_gradient_norm`), since only it takes the norm.

    Args:
        on_nonfinite: `stop` or `skip`.
        remember: gradient norms to show.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(self, on_nonfinite: str = "stop", remember: int = 10) -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"callbacks.finite.on_nonfinite is stop or skip, got {on_nonfinite!r}")
        if remember < 1:
            raise ValueError(f"callbacks.finite.remember must be at least 1, got {remember}")
        self.skip = on_nonfinite == "skip"
        self.skipped = 0
        self.stage, self.batch, self.number = "training", None, 0
        self._norms: deque[Tensor] = deque(maxlen=remember)
        self._loss: Tensor | None = None
        self._before: Any = None

    def state_dict(self) -> dict[str, Any]:
        """What was skipped."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch; keep what a skipped step must not change."""
        self._see("training", batch, batch_idx)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._loss = None
            if self.skip:
                self._before = pl_module.snapshot()  # type: ignore[operator]

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Note the batch."""
        self._see("validation", batch, batch_idx)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Note the batch."""
        self._see("the test", batch, batch_idx)

    def _see(self, stage: str, batch: Any, number: int) -> None:
        self.stage, self.batch, self.number = stage, batch, number

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Add up the step's loss: what is not finite stays so."""
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_gradient_norm(self, trainer: pl.Trainer, pl_module: pl.LightningModule, norm: Tensor) -> bool:
        """Look at a step before it is made.

        Args:
            trainer: of the run.
            pl_module: its task.
            norm: of the gradient, over all ranks.

        Returns:
            whether the step must be skipped.

        Raises:
            NotFiniteError: it must not be made, and skipping is not allowed.
        """
        assert self._loss is not None
        seen = norm
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            seen = self._loss  # float16: its scaler looks at the gradient and tries steps that are too large on purpose
        elif trainer.world_size == 1:
            seen = norm + 0 * self._loss  # not finite where either is not
        if torch.isfinite(seen):
            self._norms.append(norm.detach())
            return False
        if self.skip:
            self.skipped += 1
            pl_module.restore(self._before)  # type: ignore[operator]
            if trainer.is_global_zero:
                tell(f"skipped step {trainer.global_step + 1}: {self._what(norm)} on {self._where(trainer)}")
            return True
        if trainer.global_rank and torch.isfinite(self._loss):
            raise SystemExit(2)  # the rank whose batch it was says so, and rank 0
        before = ", ".join(f"{float(value):.3g}" for value in self._norms) or "none, it was the first step"
        raise NotFiniteError(
            f"{self._what(norm)} at step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}) on "
            f"{self._where(trainer)}; gradient norms of the steps before: {before}. Weights are as they were. Try a "
            "lower optimizer.lr, a smaller trainer.gradient_clip_val, a warm-up (scheduler=cosine), or go on without "
            "such steps: callbacks.finite.on_nonfinite=skip"
        )

    def _what(self, norm: Tensor) -> str:
        return f"loss {float(self._loss if self._loss is not None else norm):.4g}, gradient norm {float(norm):.4g}"

    def _where(self, trainer: pl.Trainer) -> str:
        loader: Any = trainer.train_dataloader
        rank = f"rank {trainer.global_rank}'s " if trainer.world_size > 1 else ""
        return f"{rank}batch {self.number} ({place(self.batch, loader, self.number)})"


def place(batch: Any, loader: Any, number: int) -> str:
    """Which part of the data a batch is."""
    rows = getattr(batch, "rows", None)
    if rows is not None:
        named = sorted(int(row) for row in rows)
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        return f"training rows {', '.join(map(str, named[:_SHOWN]))}{more}"
    return str(loader.where(number)) if hasattr(loader, "where") else f"{size(batch)}"


def size(batch: Any) -> str:
    """How large a batch is, in words."""
    text = getattr(batch, "text", None)
    if not isinstance(text, PackedSequence):
        return "unknown size"
    what = "texts" if hasattr(batch, "rows") else "streams"
    return f"{int(text.batch_sizes[0]):,} {what}, longest {len(text.batch_sizes):,} tokens, {len(text.data):,} in all"


def out_of_memory(error: BaseException, watch: Finite | None) -> str | None:
    """One line for an error that is a lack of memory; None for any other.

    Args:
        error: anything.
        watch: has seen the batch.
    """
    said = str(error)
    lack = isinstance(error, RuntimeError) and re.search(r"can't allocate|not enough memory|out of memory", said)
    if not lack and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return None
    where = ""
    lower = "data.batch_size, model.net.hidden_size"
    if watch is not None and watch.batch is not None:
        where = f" in {watch.stage}, batch {watch.number} of {size(watch.batch)}"
        texts = hasattr(watch.batch, "rows")
        length = "data.max_length" if texts else "data.bptt"
        if watch.stage == "training":
            lower = f"data.batch_size (and raise trainer.accumulate_grad_batches), {length}, model.net.hidden_size"
            lower += ", or set data.max_tokens" if texts else ""
        else:
            lower = f"data.eval_batch_size{'' if texts else ' or data.eval_bptt'}"
    return f"out of memory{where}: lower {lower} ({next(iter(said.splitlines()), type(error).__name__)[:160]})"
