"""A learning rate to begin with: `python -m recur.train find_lr=true`.

The range test of Smith (2017), as Lightning has it: the rate grows from step to step, and where the loss falls fastest
is a good one. The weights and the run's folder are left as they were.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.tuner import Tuner

from recur.errors import UserError
from recur.tasks.base import Stepping

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
_KEPT = 0.98  # of Lightning's running average, by a step
_FIRST, _LAST = 10, 5  # steps at either end that tell nothing


@dataclass(frozen=True)
class RangeTest:
    """What the test showed.

    Attributes:
        rate: a good learning rate to begin with.
        rates: of each step, growing.
        losses: after each step, smoothed.
    """

    rate: float
    rates: list[float]
    losses: list[float]

    def table(self, rows: int = 12) -> str:
        """Rates and losses, some of them, one line each."""
        places = range(0, len(self.rates), max(1, len(self.rates) // rows))
        lines = [f"{self.rates[place]:>12.2e}  {self.losses[place]:.4f}" for place in places]
        return "\n".join([f"{'rate':>12}  loss", *lines])


def find(data: Any, task: Any, config: dict[str, Any]) -> RangeTest:
    """Test rates from `LOWEST` to `HIGHEST`, or to ten times the config's own, in `STEPS` steps of training.

    Args:
        data: the data module, set up.
        task: with its optimizer.
        config: of the run, for the trainer's accelerator, precision and clipping.

    Raises:
        UserError: no rate made the loss fall, or there are too few batches to tell.
    """
    if (rate := getattr(task, "layer_rate", 1.0)) != 1:
        rule = f"tries one rate for all layers, and model.layer_rate={rate} gives each its own"
        raise UserError("find_lr", rule=rule, remedy="set model.layer_rate=1 while you look for a rate")
    if epochs := getattr(task, "unfreeze_epochs", 0):
        rule = f"tries rates on all layers, and model.unfreeze_epochs={epochs} begins with the head alone"
        raise UserError("find_lr", rule=rule, remedy="set model.unfreeze_epochs=0 while you look for a rate")
    if (group := config["trainer"].get("accumulate_grad_batches", 1)) != 1:
        rule = f"tries steps of one batch, and trainer.accumulate_grad_batches={group} makes larger ones"
        raise UserError("find_lr", rule=rule, remedy="look with data.batch_size as much larger, and without it")
    if config["data"].get("train_on_unlabelled"):
        rule = "compares losses of batches, which data.train_on_unlabelled=true has hang on how many texts have labels"
        raise UserError("find_lr", rule=rule, remedy="set data.train_on_unlabelled=false while you look for a rate")
    if isinstance(task, Stepping):
        task.prepare(data)
    settings, own = config["trainer"], (config.get("optimizer") or {}).get("lr")
    highest = max(HIGHEST, 10.0 * own) if isinstance(own, (int, float)) else HIGHEST  # an SGD of language models has 20
    with tempfile.TemporaryDirectory() as scratch:
        trainer = pl.Trainer(
            accelerator=settings.get("accelerator", "auto"),
            devices=1,
            plugins=[LightningEnvironment()],  # one process, also in a SLURM job of several tasks
            precision=settings["precision"],
            max_epochs=10_000,  # the test ends it
            gradient_clip_val=settings.get("gradient_clip_val"),
            gradient_clip_algorithm=settings.get("gradient_clip_algorithm"),
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=scratch,
        )
        task.learning_rate = LOWEST  # Lightning asks for the attribute, and sets it at the end
        finder: Any = Tuner(trainer).lr_find(
            task, datamodule=data, min_lr=LOWEST, max_lr=highest, num_training=STEPS, update_attr=False
        )
    results = {"lr": [], "loss": []} if finder is None else finder.results
    losses = corrected(results["loss"])
    place = steepest(losses)
    if place is None:
        raise UserError("find_lr", rule="saw the loss fall at no rate", remedy="set optimizer.lr yourself")
    return RangeTest(results["lr"][place], list(results["lr"]), losses)


def corrected(losses: Sequence[float]) -> list[float]:
    """Lightning's smoothed losses without their bias.

    Its running average begins at zero and is to be divided by 1 - .98^k after k steps; it divides by 1 - .98^(k + 1).
    """
    return [loss * (1 - _KEPT ** (k + 1)) / (1 - _KEPT**k) for k, loss in enumerate(losses, start=1)]


def steepest(losses: Sequence[float]) -> int | None:
    """Where the loss falls fastest from one rate to the next, each the same factor above the last; None for nowhere.

    Lightning's own suggestion takes the slope over the rates themselves, which is divided by the rate: a tremor at the
    lowest rates then beats any real fall.
    """
    places = [i for i in range(_FIRST, len(losses) - _LAST) if math.isfinite(losses[i])]
    if len(places) < 2:
        return None
    slopes = torch.gradient(torch.tensor([losses[i] for i in places], dtype=torch.float64))[0]
    lowest = int(slopes.argmin())
    return places[lowest] if slopes[lowest] < 0 else None
