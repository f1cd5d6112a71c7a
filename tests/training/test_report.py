"""What a run says of itself at its end."""

import json
import logging
import os
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from recur.runs.metrics import device_name
from recur.training import report
from recur.training.callbacks import Throughput


class _Task(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, number):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({"max_steps": 4}, 1.4), ({"max_steps": 3}, 1), ({"max_epochs": 2}, 2), ({"max_epochs": 2, "max_steps": 6}, 2)],
)
def test_epochs_are_counted_in_batches(settings, epochs) -> None:
    """Five an epoch, the last of which is a step of its own."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=2, **quiet, **settings)
    trainer.fit(_Task(), DataLoader(torch.ones(5, 1)))
    assert report._epochs(trainer, trained=True) == epochs


def test_what_has_no_reader_any_more_is_no_error(capfd) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output, report.logging_as_before():
        handler = logging.StreamHandler(output)
        logging.getLogger().addHandler(handler)
        report.quiet()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", output)
            logging.getLogger("recur").warning("epoch 1")
            logging.getLogger("recur").warning("epoch 2")
    assert capfd.readouterr().err == ""


def _ended(processed: int, **more: Any) -> Any:
    """A trainer whose third epoch has had five of its ten batches, with so many epochs that are over."""
    epochs, batches = SimpleNamespace(ready=3, processed=processed), SimpleNamespace(completed=5)
    inner = SimpleNamespace(batch_progress=SimpleNamespace(current=batches))
    loop = SimpleNamespace(epoch_loop=inner, epoch_progress=SimpleNamespace(current=epochs))
    return SimpleNamespace(fit_loop=loop, num_training_batches=10, **more)


@pytest.mark.parametrize(("processed", "trained", "epochs"), [(3, False, 3), (2, False, 2.5), (3, True, 2.5)])
def test_a_run_with_nothing_left_to_train_has_the_epochs_it_was_trained_for(processed, trained, epochs) -> None:
    """On twice as many ranks an epoch had five batches, and here it has ten."""
    assert report._epochs(_ended(processed), trained=trained) == epochs


@pytest.mark.parametrize(("before", "rate"), [([], 25), ([["NVIDIA H200", 1, "32-true"]], None)])
def test_useful_products_are_those_of_this_machine_alone(tmp_path, monkeypatch, before, rate) -> None:
    """Those of a run that was trained elsewhere, too, stood beside what this machine can do."""
    monkeypatch.setattr(report, "matrix_rate", lambda *_: 100.0)
    monkeypatch.setattr(report, "next_commands", lambda *_: [])
    cpu, speed = torch.device("cpu"), Throughput()
    speed.tokens, speed.seconds, speed.flop, speed.trained = 10, 2.0, 50.0, True
    speed.places = [*before, [device_name(cpu), 1, "32-true"]]
    place = {"strategy": SimpleNamespace(root_device=cpu), "world_size": 1, "precision": "32-true"}
    trainer = _ended(3, callbacks=[speed], global_step=25, optimizers=[], loggers=[], **place)
    task = SimpleNamespace(family="language", parameters=list)
    data, results = SimpleNamespace(ceiling={}, describe=dict), {"val": {"loss": 0.5}}
    parts = (tmp_path, {"name": "mine", "seed": 0}, data, task, trainer, results)
    report.closing(*parts, command=[], spent=report.Spent(3.0, 1.0))
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert (record["flop_per_second"], record["matrix_rate"]) == (rate, rate and 100)
    assert record["tokens_per_second"] == 5


def test_the_rate_is_that_of_products_in_the_runs_precision() -> None:
    """Of float64, which has half of it, float32's was given."""
    named = {
        "64-true": torch.float64,
        "32-true": torch.float32,
        "bf16-mixed": torch.bfloat16,
        "16-mixed": torch.bfloat16,
    }
    assert {precision: report._dtype(precision) for precision in named} == named
